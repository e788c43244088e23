"""Differential attention by a path that is chosen here and not by `has_kernel`, and as a float64 formula."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...layers import functional
from ...layers.functional import differential_attention
from ...layers.kernels import operator
from ...layers.kernels.layout import HEAD_NORM_EPS, BranchDims, split_branches

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

    The arguments are those of `differential_attention`. On a CPU the kernel is that of the operator, or the Triton
    kernel if Triton interprets its kernels.
    """
    if q.device.type == "cpu" and interprets_kernels():
        lam = lam.expand(*v.shape[:3], 1).to(q.dtype)  # (B, H, N, 1)
        return _Interpreted.apply(q, k, v, lam, branch_dims, scale, norm_weight)
    with _kernel_choice(True):
        return differential_attention(q, k, v, lam, branch_dims, scale, norm_weight=norm_weight)


def stacked_attention(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: BranchDims, scale: float) -> Tensor:
    """Compute differential attention by one call of PyTorch's fused attention with twice the queries."""
    with _kernel_choice(False):
        return differential_attention(q, k, v, lam, branch_dims, scale)


@contextlib.contextmanager
def _kernel_choice(takes_kernel: bool) -> Iterator[None]:
    """Let `differential_attention` take our kernel, or PyTorch's fused attention, for every shape."""
    before = functional.has_kernel
    functional.has_kernel = lambda *args: takes_kernel
    try:
        yield
    finally:
        functional.has_kernel = before


def interprets_kernels() -> bool:
    """Return whether Triton's interpreter runs the kernels, which it does on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def operator_calls(
    heads: Iterable[Tensor], branch_dims: tuple[int, int], scale: float
) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the operators with arguments for `torch.library.opcheck`.

    Args:
        heads: q, k, v and lam, which have gradients.
        branch_dims, scale: as in `differential_attention`.
    """
    q, k, v, lam = heads
    lam = lam.detach().to(q.dtype).requires_grad_()
    without = [t.detach() for t in (q, k, v, lam)]
    return [
        (operator.attend, (q, k, v, lam, list(branch_dims), scale)),
        (operator.attend_and_norm, (*without, torch.ones_like(v[0, 0, 0]), list(branch_dims), scale)),
    ]


class _Interpreted(torch.autograd.Function):
    """The Triton kernels on the CPU, which the operator does not call there."""

    @staticmethod
    def forward(ctx: Any, q, k, v, lam, branch_dims, scale, norm_weight):
        from ...layers.kernels import cuda  # not at the top: it imports triton

        ctx.save_for_backward(q, k, v, lam)
        ctx.options = branch_dims, scale
        return cuda.forward(q, k, v, lam, branch_dims, scale, norm_weight)

    @staticmethod
    def backward(ctx: Any, grad):
        from ...layers.kernels import cuda

        return *cuda.backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None


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
