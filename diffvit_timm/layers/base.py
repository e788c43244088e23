"""The forward pass that both versions of differential attention share."""

import torch
from torch import Tensor, nn

from .functional import differential_attention
from .kernels.layout import BranchDims

__all__ = ["DifferentialLayer", "differential_layers"]


class DifferentialLayer(nn.Module):
    """Base class of the differential self-attention layers.

    A subclass defines how the tokens are projected, how lambda is computed and how the heads are merged.

    Shapes: B images, N tokens, H heads.
    """

    fused_attn: bool
    qkv: nn.Linear
    attn_drop: nn.Dropout
    proj: nn.Linear
    proj_drop: nn.Dropout
    branch_dims: BranchDims
    num_heads: int
    head_dim: int
    scale: float
    lambda_init: Tensor

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens x, (B, N, dim), to q, k and v in the layout that `differential_attention` takes."""
        raise NotImplementedError

    def compute_lambda(self, x: Tensor) -> Tensor:
        """Compute lambda for tokens x, (B, N, dim), in float32 and in a shape that broadcasts to (B, H, N, 1)."""
        raise NotImplementedError

    def head_norm_weight(self) -> Tensor | None:
        """Weight of the RMSNorm of each head's output, (head width,); None if the layer has no such norm.

        Constant factors of the output are part of the weight.
        """
        return None

    def merge_heads(self, x: Tensor) -> Tensor:
        """Merge the outputs of the heads, (B, H, N, head width), to (B, N, dim)."""
        raise NotImplementedError

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """Set lambda_init in place. From then on it is part of the state dict, so copy the model for EMA afterwards."""
        self.lambda_init.fill_(value)
        self._non_persistent_buffers_set.discard("lambda_init")

    def attend(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute the input of the output projection, (B, N, dim). The arguments are those of `forward`."""
        q, k, v = self.project_qkv(x)
        norm_weight = self.head_norm_weight()
        x = differential_attention(
            q,
            k,
            v,
            self.compute_lambda(x),
            self.branch_dims,
            self.scale,
            attn_mask=attn_mask,
            is_causal=is_causal,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            norm_weight=None if norm_weight is None else norm_weight.to(q.dtype),
            fused=self.fused_attn,
        )  # (B, H, N, head width)
        return self.merge_heads(x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """
        Args:
            x: tokens, (B, N, dim).
            attn_mask: boolean mask (True: the key takes part) or additive mask, broadcastable to (B, H, N, N). Both
                maps use the same mask.
            is_causal: whether a query ignores the keys after it.

        Returns:
            The new tokens, (B, N, dim).
        """
        return self.proj_drop(self.proj(self.attend(x, attn_mask, is_causal)))


def differential_layers(model: nn.Module) -> list[DifferentialLayer]:
    """Return the differential attention layers of a network, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, DifferentialLayer)]
