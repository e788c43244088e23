"""Differential attention by a path that is chosen here and not by `has_kernel`, and as a float64 formula."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...layers import functional
from ...layers.functional import head_norm
from ...layers.kernels import operator
from ...layers.kernels.layout import HEAD_NORM_EPS, BranchDims, split_branches
from ...layers.kernels.packing import empty_gradients

__all__ = ["formula", "interprets_kernels", "operator_calls", "our_attention", "stacked_attention"]


def our_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    branch_dims: BranchDims,
    scale: float,
    norm_weight: Tensor | None = None,
) -> Tensor:
    """Compute differential attention by our own kernel, with gradients, or raise the kernel's error.

    The arguments are those of `differential_attention`. On a CPU the kernel is that of the CPU, or the Triton kernel if
    Triton interprets its kernels.
    """
    lam = lam.expand(*v.shape[:3], 1)  # (B, H, N, 1)
    fused_norm = None if torch.is_grad_enabled() else norm_weight
    if q.device.type == "cpu" and interprets_kernels():
        out: Tensor = _Interpreted.apply(q, k, v, lam, branch_dims, scale, fused_norm)
    else:
        out = operator.attend(q, k, v, lam, branch_dims, scale, fused_norm)
    return head_norm(out, norm_weight if fused_norm is None else None)


def stacked_attention(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: BranchDims, scale: float) -> Tensor:
    """Compute differential attention by one call of PyTorch's fused attention with twice the queries."""
    return functional.stacked_attention(q, k, v, lam.to(q.dtype), branch_dims, scale)


def interprets_kernels() -> bool:
    """Return whether Triton's interpreter runs the kernels, which it does on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def operator_calls(
    heads: Iterable[Tensor], branch_dims: tuple[int, int], scale: float
) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the operator with arguments for `torch.library.opcheck`, for training and for inference.

    Args:
        heads: q, k, v and lam, which have gradients.
        branch_dims, scale: as in `differential_attention`.
    """
    q, k, v, lam = heads
    without = [t.detach() for t in (q, k, v, lam)]
    return [
        (operator.attend_operator, (q, k, v, lam, None, list(branch_dims), scale, True)),
        (operator.attend_operator, (*without, torch.ones_like(v[0, 0, 0]), list(branch_dims), scale, False)),
    ]


class _Interpreted(torch.autograd.Function):
    """The Triton kernels on the CPU, which the operator does not call there."""

    @staticmethod
    def forward(ctx: Any, q, k, v, lam, branch_dims, scale, norm_weight):
        from ...layers.kernels import cuda  # not at the top: it imports triton

        out, *kept = cuda.forward(q, k, v, lam, branch_dims, scale, norm_weight, for_backward=True)
        ctx.save_for_backward(q, k, v, lam, out, *kept)
        ctx.branch_dims, ctx.scale = branch_dims, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad):
        from ...layers.kernels import cuda

        q, k, v, lam, out, out2, lse = ctx.saved_tensors
        grads = empty_gradients(q, k, v)
        done = cuda.backward(grad, q, k, v, lam, out, out2, lse, ctx.branch_dims, ctx.scale, grads)
        return *done, None, None, None


def formula(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: BranchDims, scale: float, norm_weight: Tensor | None
) -> Tensor:
    """Compute equation 1 (with norm_weight: equation 3) in the precision of the arguments, with explicit maps."""
    (q1, k1), (q2, k2) = split_branches(q, k, branch_dims)
    map1 = torch.softmax(q1 @ k1.transpose(-2, -1) * scale, dim=-1)  # (B, H, N, N)
    map2 = torch.softmax(q2 @ k2.transpose(-2, -1) * scale, dim=-1)  # (B, H, N, N)
    out = map1 @ v - lam * (map2 @ v)  # (B, H, N, Dv)
    if norm_weight is None:
        return out
    return out * norm_weight / (out.square().mean(dim=-1, keepdim=True) + HEAD_NORM_EPS).sqrt()
