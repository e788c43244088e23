"""Differential attention as published (version 1).

`Differential Transformer` - https://arxiv.org/abs/2410.05258, equations 1 to 3
Reference implementation: https://github.com/microsoft/unilm/tree/master/Diff-Transformer
The parameters have the names, shapes and head order of timm.layers.DiffAttention, so each layer can load the state dict
of the other.
"""

import math
from typing import Any

import torch
from timm.layers import RmsNorm, use_fused_attn
from torch import Tensor, nn

from .base import Version1
from .functional import additive_mask
from .kernels.layout import HEAD_NORM_EPS
from .kernels.packing import split_projection
from .kernels.vector_lambda import vector_lambda
from .token_layer import TokenLayer

__all__ = ["DifferentialAttention", "lambda_init_schedule"]

torch.fx.wrap("additive_mask")
torch.fx.wrap("split_projection")
torch.fx.wrap("vector_lambda")


def lambda_init_schedule(depth: int) -> float:
    """Return the paper's lambda_init for block `depth`, counted from 0 (section 2.1; the paper's l is `depth + 1`)."""
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


class DifferentialAttention(TokenLayer, Version1):
    """Multi-head differential self-attention (V1).

    Each head has a pair of maps. All heads of the layer share one
    `lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init` (equation 2). With head_norm=True
    the output of each head passes an RMSNorm, whose weight the heads share, and is multiplied by the constant
    `1 - lambda_init` (equation 3).

    `lambda_init` is a buffer. If it follows the paper's schedule, it is not part of the state dict, which then has
    exactly timm's keys. If it is a number, which the constructor, `set_lambda_init` or a checkpoint sets, it is saved,
    and a checkpoint must contain it.
    """

    branch_dims: tuple[int, int]
    qk_norm: torch.jit.Final[bool]
    head_norm: torch.jit.Final[bool]
    dual_lambda: torch.jit.Final[bool]
    lambda_a: Tensor
    lambda_b: Tensor
    lambda_q1: Tensor
    lambda_k1: Tensor
    lambda_q2: Tensor
    lambda_k2: Tensor
    branch_widths: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        depth: int = 0,
        dual_lambda: bool = False,
        head_norm: bool = True,
        lambda_init: float | str = "schedule",
        branch_dims: tuple[int, int] | None = None,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            dim: width of the tokens.
            num_heads: number of heads, each with a pair of maps. A head is `dim / num_heads` wide.
            qkv_bias: whether to use a bias in the query, key and value projections.
            qk_norm: whether to normalise the queries and keys of each branch. The branches must have equal widths.
            scale_norm: whether to normalise the tokens before the output projection.
            proj_bias: whether to use a bias in the output projection.
            attn_drop: dropout rate of the maps.
            proj_drop: dropout rate after the output projection.
            norm_layer: norm layer of qk_norm and scale_norm, RmsNorm by default.
            depth: index of the block, counted from 0, for the schedule of lambda_init. timm does not pass it to an
                `attn_layer` from outside timm, so choose this layer with `attn='diff'` of this package's models.
            dual_lambda: whether to use two scalars instead of the four lambda vectors.
            head_norm: whether to apply an RMSNorm to each head's output and to multiply it by `1 - lambda_init`.
            lambda_init: a number, or 'schedule' for the paper's `0.8 - 0.6 exp(-0.3 depth)`.
            branch_dims: widths (d1, d2) of the two branches of a head. By default both are half the head, as in the
                paper and timm. The softmax scale is `(head width / 2) ** -0.5` for any widths.

        Raises:
            ValueError: invalid widths, or a lambda_init that is neither a finite number nor 'schedule'.
        """
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dim % num_heads:
            raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}")
        head_dim = dim // num_heads
        if branch_dims is None and head_dim % 2:
            raise ValueError(
                f"a head of odd width {head_dim} (dim={dim}, num_heads={num_heads}) cannot be halved: "
                f"change num_heads, or pass branch_dims=({head_dim // 2 + 1}, {head_dim // 2})"
            )
        d1, d2 = branch_dims or (head_dim // 2, head_dim // 2)
        if d1 + d2 != head_dim or min(d1, d2) < 1:
            raise ValueError(
                f"branch_dims=({d1}, {d2}) must be two positive widths that sum to {head_dim}, the width of a head"
            )
        if qk_norm and d1 != d2:
            raise ValueError(f"qk_norm=True needs two branches of equal width: change branch_dims=({d1}, {d2})")
        if lambda_init != "schedule" and (isinstance(lambda_init, str) or not math.isfinite(lambda_init)):
            raise ValueError(f"lambda_init={lambda_init!r} must be a finite number or 'schedule'")
        norm_layer = norm_layer or RmsNorm

        self.num_heads = num_heads
        self.head_dim = head_dim
        self.branch_dims = (d1, d2)
        self.scale = (head_dim / 2) ** -0.5
        self.fused_attn = use_fused_attn()
        self.qk_norm = qk_norm
        self.head_norm = head_norm
        self.dual_lambda = dual_lambda

        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias, **dd)
        self.q_norm = norm_layer(d1, **dd) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(d1, **dd) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm_layer(dim, **dd) if scale_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sub_norm: Any = RmsNorm(head_dim, eps=HEAD_NORM_EPS, **dd) if head_norm else nn.Identity()

        # Lambda is a difference of exponentials, so its parameters are float32 for every `dtype`, as in timm.
        names = ("lambda_a", "lambda_b") if dual_lambda else ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
        shape = () if dual_lambda else (head_dim // 2,)
        for name in names:
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=torch.float32)))
        scheduled = isinstance(lambda_init, str)
        self._lambda_start = lambda_init_schedule(depth) if scheduled else float(lambda_init)
        self.register_buffer(
            "lambda_init", torch.empty((), device=device, dtype=torch.float32), persistent=not scheduled
        )
        if d1 != d2:
            # The shapes of the weights do not depend on the branch widths, so weights for other widths would load and
            # compute something else. The saved widths reveal them. They are floats because an average of weights (EMA)
            # would round an integer buffer down at each step.
            self.register_buffer("branch_widths", torch.empty(2, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise lambda as in the paper. The projections initialise themselves, or the model initialises them."""
        self.lambda_init.fill_(self._lambda_start)
        if self.branch_dims[0] != self.branch_dims[1]:
            self.branch_widths.copy_(torch.tensor(self.branch_dims))
        if self.dual_lambda:
            nn.init.zeros_(self.lambda_a)
            nn.init.zeros_(self.lambda_b)
        else:
            for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
                nn.init.normal_(vector, std=0.1)

    @torch.jit.ignore
    def init_non_persistent_buffers(self) -> None:
        """Fill the buffers that no checkpoint contains. timm calls this hook on a model made on the meta device."""
        if "lambda_init" in self._non_persistent_buffers_set:
            self.lambda_init.fill_(self._lambda_start)

    def compute_lambda(self, x: Tensor) -> Tensor:
        """Compute lambda, a float32 scalar that does not depend on the tokens x (equation 2)."""
        if self.dual_lambda:
            return torch.exp(self.lambda_a) - torch.exp(self.lambda_b) + self.lambda_init
        return vector_lambda(self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2, self.lambda_init)

    def split_qkv(
        self, qkv: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Split the projection into q, k and v, (B, H, N, head width) each; branch 1 comes first in q and k."""
        B, N, width = qkv.shape
        dim = width // 3
        q, k, v = split_projection(qkv, dim, dim)
        heads = (B, N, self.num_heads, self.head_dim)
        q, k, v = q.view(heads).transpose(1, 2), k.view(heads).transpose(1, 2), v.view(heads).transpose(1, 2)
        if self.qk_norm:
            pair = (B, self.num_heads, N, 2, self.head_dim // 2)  # the two branches apart
            # Some norms return float32 under autocast.
            q = self.q_norm(q.reshape(pair)).flatten(-2).to(v.dtype)
            k = self.k_norm(k.reshape(pair)).flatten(-2).to(v.dtype)
        return q, k, v, additive_mask(q, attn_mask, is_causal)

    @torch.jit.ignore
    def attend_packed(self, x: Tensor, qkv: Tensor) -> Tensor | None:
        """Compute `attend` in one function, as in `TokenLayer`; None if the queries and keys are normalised before."""
        merged = None if self.qk_norm else super().attend_packed(x, qkv)
        return None if merged is None else self.norm(merged)

    @torch.jit.ignore
    def lambda_vectors(self) -> tuple[Tensor, ...]:
        """Return the arguments of `vector_lambda`, or nothing if lambda comes from two scalars."""
        if self.dual_lambda:
            return ()
        return self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2, self.lambda_init

    def head_norm_weight(self) -> Tensor | None:
        """Weight of the RMSNorm of each head, (head width,), times 1 - lambda_init (equation 3), or None."""
        return self.sub_norm.weight * (1 - self.lambda_init) if self.head_norm else None

    @torch.jit.ignore
    @torch.no_grad()
    def fuse(self) -> "DifferentialAttention":
        """Fold the weight of the head norm and the factor 1 - lambda_init into `proj`, in place, for inference.

        The layer does not change if it has no head norm, or if a scale_norm stands between the head norm and `proj`.

        Returns:
            The layer itself, because timm's reparameterize_model replaces each layer with the result of this method.
        """
        if self.head_norm and isinstance(self.norm, nn.Identity):
            weight = self.sub_norm.weight * (1 - self.lambda_init)
            self.proj.weight.mul_(weight.repeat(self.num_heads))
            self.sub_norm.weight.fill_(1 / (1 - self.lambda_init))  # so that head_norm_weight() is 1
        return self

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        """Merge the outputs of the heads, (B, H, N, head width), to (B, N, dim)."""
        return self.norm(heads.transpose(1, 2).flatten(2))
