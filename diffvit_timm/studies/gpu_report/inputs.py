"""Queries, keys, values and lambda with the memory layout that a projection gives them."""

import dataclasses

import torch
from torch import Tensor

from ...layers.kernels.layout import BranchDims
from ..timing import PRECISIONS

__all__ = ["DTYPES", "Heads", "make_heads", "widths_text"]

DTYPES = PRECISIONS | {"tf32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Heads:
    """The arguments of attention.

    Attributes:
        q, k, v: views of one tensor, as in `differential_attention`.
        lam: lambda in float32, a scalar or (B, H, N, 1).
        grad: gradient of the output, (B, H, N, Dv).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lam: Tensor
    grad: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and lam, which have gradients."""
        return self.q, self.k, self.v, self.lam

    def copied_leaves(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return copies of q, k, v and lam with gradients: q, k and v in `dtype`, lam in float32 or wider."""
        q, k, v = (t.detach().to(dtype, copy=True).requires_grad_() for t in (self.q, self.k, self.v))
        wide = torch.promote_types(dtype, torch.float32)
        return q, k, v, self.lam.detach().to(wide, copy=True).requires_grad_()


def make_heads(
    batch: int, heads: int, tokens: int, width: int, has_double_queries: bool, per_token: bool, dtype: torch.dtype,
    device: str
) -> Heads:  # fmt: skip
    """Return normally distributed heads, the same in each call.

    Args:
        batch, heads, tokens, width: B, H, N and the width of a head.
        has_double_queries: whether q has twice the width, as in version 2.
        per_token: whether lambda has one value per token and head; otherwise it is one scalar.
        dtype: precision of q, k, v and grad.
        device: device of the tensors.
    """
    generator = torch.Generator(device).manual_seed(0)
    q_width = 2 * width if has_double_queries else width
    sizes = [heads * q_width, heads * width, heads * width]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    projected = normal(batch, tokens, sum(sizes)).split(sizes, dim=-1)  # (B, N, H width) each
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in projected)  # (B, H, N, width)
    grad = normal(batch, tokens, heads, width).transpose(1, 2)  # (B, H, N, Dv)
    shape = (batch, tokens, heads) if per_token else ()
    lam = torch.rand(shape, generator=generator, device=device)
    lam = lam.transpose(1, 2).unsqueeze(-1) if per_token else lam  # (B, H, N, 1)
    for leaf in (q, k, v, lam):
        leaf.requires_grad_()
    return Heads(q, k, v, lam, grad)


def widths_text(branch_dims: BranchDims, width: int) -> str:
    """Write the kind of attention and the widths of its branches: 'V1 48+16' or 'V2 64'."""
    return f"V2 {width}" if branch_dims is None else f"V1 {branch_dims[0]}+{branch_dims[1]}"
