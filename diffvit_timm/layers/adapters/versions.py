"""The parameters that versions 1 and 2 of differential attention add to timm's layers.

A differential layer is made from timm's layer in place, and keeps its modules and their names. Version 2 gets a second
query per head, in the rows of the query projection. Version 1 keeps all shapes, and divides the channels of each head
between the two branches.
"""

import torch
from timm.layers import use_fused_attn
from torch import Tensor, nn

from ..base import Version1, Version2

__all__ = ["AdaptedVersion1", "AdaptedVersion2"]


class AdaptedVersion1(Version1):
    """Version 1: each branch reads a part of the channels of a head, after norms and rotary embeddings.

    Attributes:
        channel_order: order of the channels of each head, (H, d), in which those of branch 1 come first. None if they
            are in this order already. They are floats because an average of weights (EMA) would round integers.
    """

    branch_widths: Tensor
    channel_order: Tensor | None

    @torch.jit.ignore
    def add_branches(self, head_dim: int, lambda_init: float, branch_dims: tuple[int, int], ordered: bool) -> None:
        """Add lambda and the branches to a layer of timm.

        Args:
            head_dim: width of a head.
            lambda_init: lambda at the start.
            branch_dims: widths (d1, d2) of the two branches.
            ordered: whether the layer stores an order of its channels.
        """
        weight = next(self.parameters())
        self.fused_attn = use_fused_attn()
        self.branch_dims = branch_dims
        for name in ("lambda_q1", "lambda_k1"):
            vector = torch.empty(head_dim // 2, device=weight.device, dtype=torch.float32)
            setattr(self, name, nn.Parameter(nn.init.normal_(vector, std=0.1)))
        # With equal pairs of vectors lambda is exactly lambda_init. They are not zero, so that they have gradients.
        self.lambda_q2 = nn.Parameter(self.lambda_q1.detach().clone())
        self.lambda_k2 = nn.Parameter(self.lambda_k1.detach().clone())
        self.register_buffer("lambda_init", torch.tensor(lambda_init, device=weight.device))
        self.register_buffer("branch_widths", torch.tensor(branch_dims, device=weight.device, dtype=torch.float32))
        order = torch.arange(head_dim, device=weight.device, dtype=torch.float32).repeat(self.num_heads, 1)
        self.register_buffer("channel_order", order if ordered else None)

    def arrange(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Bring the channels of q and k, (B, H, N, d) each, into the order in which branch 1 comes first."""
        if self.channel_order is not None:
            order = self.channel_order.long()[None, :, None].expand(q.shape)  # (B, H, N, d)
            q, k = q.gather(-1, order), k.gather(-1, order)
        return q, k


class AdaptedVersion2(Version2):
    """Version 2: each head has two queries, at 2i and 2i + 1 of the query projection for head i."""

    @torch.jit.ignore
    def add_branches(self, width: int, lambda_init: float) -> None:
        """Add lambda to a layer of timm.

        Args:
            width: width of the tokens.
            lambda_init: lambda for every token at the start.
        """
        self.require_sigmoid(lambda_init)
        weight = next(self.parameters())
        self.fused_attn = use_fused_attn()
        self.branch_dims = None
        self.lambda_proj = nn.Linear(width, self.num_heads, bias=False, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.lambda_proj.weight)
        self.register_buffer("lambda_init", torch.tensor(lambda_init, device=weight.device))

    def arrange(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Put the two queries of a head side by side: q from (B, 2 H, N, d) to (B, H, N, 2 d)."""
        return q.unflatten(1, (-1, 2)).transpose(2, 3).flatten(3), k
