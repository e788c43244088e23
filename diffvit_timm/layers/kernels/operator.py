"""Differential attention as one function with a kernel per device.

In eager mode the function calls the kernel directly, because the dispatch of an operator that is written in Python
costs more time than the kernel of a small batch. Where tensors are only described, as in torch.compile, it calls a
PyTorch operator, which torch.compile keeps in its graph without a break.

For the backward pass the kernels keep the inputs and the output, which the next layer keeps anyway. The CUDA kernel
also keeps the output of branch 2 and two numbers per query and head. Both kernels recompute the maps.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cpu
from .layout import BranchDims, empty_tokens_first
from .modes import gpu_runs_triton, is_eager, on_gpu
from .packing import empty_gradients

__all__ = ["attend", "has_kernel"]

# Limits of the CUDA kernel. Within them it is always preferred: on an H100 it was faster than `stacked_attention`
# for all measured shapes (recipes/results/gpu.md).
CUDA_DTYPES = (torch.float16, torch.bfloat16)
CUDA_MAX_WIDTH = 128  # of a branch, and of the values


def has_kernel(q: Tensor, v: Tensor, branch_dims: BranchDims) -> bool:
    """Return whether `attend` has a kernel for these queries and values that is better than PyTorch's fused attention.

    With gradients the CPU kernel is always preferred, because it stores less for the backward pass.
    """
    if q.device.type == "cpu":
        return torch.is_grad_enabled() or cpu.is_faster(v, branch_dims)
    return on_gpu(q) and _fits_cuda_kernel(q, v, branch_dims) and gpu_runs_triton(q.device.index)


def _fits_cuda_kernel(q: Tensor, v: Tensor, branch_dims: BranchDims) -> bool:
    widths = branch_dims or (q.shape[-1] // 2, q.shape[-1] // 2)
    return q.dtype in CUDA_DTYPES and max(*widths, v.shape[-1]) <= CUDA_MAX_WIDTH


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    branch_dims: BranchDims,
    scale: float,
    norm_weight: Tensor | None = None,
) -> Tensor:
    """Compute differential attention without a mask or dropout.

    Args:
        q, k, v, branch_dims, scale: as in `differential_attention`.
        lam: lambda, (B, H, N, 1), in float32 or wider.
        norm_weight: weight (Dv,) of an RMSNorm of each head, which is applied before the output is written. It has no
            gradients: they would need the output before the norm, which is not stored.

    Returns:
        The output of each head, (B, H, N, Dv), in the memory order (B, N, H, Dv).
    """
    branch_dims = _as_branch_dims(branch_dims)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v, lam))
    assert norm_weight is None or not needs_grad
    if not is_eager(q):
        return attend_operator(q, k, v, lam, norm_weight, branch_dims, scale, needs_grad)[0]
    if needs_grad:
        out: Tensor = _Attend.apply(q, k, v, lam, branch_dims, scale)
        return out
    return _forward(q, k, v, lam, norm_weight, branch_dims, scale, False)[0]


class _Attend(torch.autograd.Function):
    """`attend` with gradients, in eager mode."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        q, k, v, lam, ctx.branch_dims, ctx.scale = args
        out, out2, lse = _forward(q, k, v, lam, None, ctx.branch_dims, ctx.scale, True)
        ctx.save_for_backward(q, k, v, lam, out, out2, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, lam, out, out2, lse = ctx.saved_tensors
        if is_eager(grad):
            grads = empty_gradients(q, k, v)
            return *_backward(grad, q, k, v, lam, out, out2, lse, ctx.branch_dims, ctx.scale, grads), None, None
        out2, lse = _filled(q, lam, out2, lse)
        return *attend_backward(grad, q, k, v, lam, out, out2, lse, ctx.branch_dims, ctx.scale), None, None


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    norm_weight: Tensor | None,
    branch_dims: BranchDims,
    scale: float,
    for_backward: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute `attend` with the kernel of the device.

    Returns:
        The output, and what the CUDA kernel keeps for the backward pass (see `attend_operator`), otherwise None.
    """
    if on_gpu(q):
        from . import cuda  # not at the top: it imports triton, which is not part of every installation

        return cuda.forward(q, k, v, lam, branch_dims, scale, norm_weight, for_backward)
    return cpu.forward(q, k, v, lam, branch_dims, scale, norm_weight), None, None


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    out: Tensor,
    out2: Tensor | None,
    lse: Tensor | None,
    branch_dims: BranchDims,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `attend_backward` with the kernel of the device, and write it into `grads` of q, k and v."""
    if on_gpu(q):
        from . import cuda

        assert out2 is not None
        assert lse is not None
        return cuda.backward(grad, q, k, v, lam, out, out2, lse, branch_dims, scale, grads)
    return cpu.backward(grad, q, k, v, lam, branch_dims, scale, grads)


def _filled(q: Tensor, lam: Tensor, out2: Tensor | None, lse: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what the kernel keeps as an operator returns it: empty if there is none."""
    return q.new_empty(0) if out2 is None else out2, lam.new_empty(0) if lse is None else lse


def _as_branch_dims(branch_dims: Sequence[int] | None) -> BranchDims:
    """Convert the branch widths to a tuple, which can be hashed. The schema of an operator has lists only."""
    return None if branch_dims is None else (branch_dims[0], branch_dims[1])


@torch.library.custom_op("diffvit_timm::attend", mutates_args=(), device_types=("cpu", "cuda"))
def attend_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    norm_weight: Tensor | None,
    branch_dims: Sequence[int] | None,
    scale: float,
    for_backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend` as a PyTorch operator.

    Args:
        q, k, v, lam, norm_weight, branch_dims, scale: as in `attend`.
        for_backward: whether to return what the backward pass needs.

    Returns:
        The output; and what the CUDA kernel keeps for the backward pass: the output of branch 2, like the output, and
        the log-sum-exp of the logits of both branches in units of log 2, (B, H, 2, N). These two are empty on a CPU, or
        if they are not wanted.
    """
    out, out2, lse = _forward(q, k, v, lam, norm_weight, _as_branch_dims(branch_dims), scale, for_backward)
    return out, *_filled(q, lam, out2, lse)


@attend_operator.register_fake
def _(q, k, v, lam, norm_weight, branch_dims, scale, for_backward):
    if q.device.type != "cuda" or not for_backward:
        return empty_tokens_first(v), q.new_empty(0), lam.new_empty(0)
    B, H, N, _ = v.shape
    return empty_tokens_first(v), empty_tokens_first(v), lam.new_empty(B, H, 2, N)


@torch.library.custom_op("diffvit_timm::attend_backward", mutates_args=(), device_types=("cpu", "cuda"))
def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    out: Tensor,
    out2: Tensor,
    lse: Tensor,
    branch_dims: Sequence[int] | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k, v and lam from the gradient of the output, `grad`.

    Let A1 and A2 be the maps, D = A1 - lambda A2 their difference, and G = grad V^T the gradient of D, all (N, N) per
    head. With elementwise products and sums over the keys:

        dV      = D^T grad
        dlambda = -rowsum(G A2)
        dS1     = A1 (G - rowsum(G A1))              gradient of the logits of branch 1
        dS2     = -lambda A2 (G - rowsum(G A2))      gradient of the logits of branch 2
        dqi     = scale dSi ki,  dki = scale dSi^T qi    for the branches i = 1, 2

    In version 2 the gradient of k is dk1 + dk2. The sums need no maps, since rowsum(G Ai) = rowsum(grad (Ai V)).

    Args:
        grad: gradient of the output, (B, H, N, Dv).
        q, k, v, lam, branch_dims, scale: as in `attend`.
        out, out2, lse: results of `attend_operator`.
    """
    # The results of an operator must not share memory, so they are not packed.
    grads = empty_tokens_first(q), empty_tokens_first(k), empty_tokens_first(v)
    return _backward(grad, q, k, v, lam, out, out2, lse, _as_branch_dims(branch_dims), scale, grads)


@attend_backward.register_fake
def _(grad, q, k, v, lam, out, out2, lse, branch_dims, scale):
    return tuple(map(empty_tokens_first, (q, k, v, lam)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, _, ctx.branch_dims, ctx.scale, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])


def _operator_backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
    return *attend_backward(grad, *ctx.saved_tensors, ctx.branch_dims, ctx.scale), None, None, None, None


attend_operator.register_autograd(_operator_backward, setup_context=_setup_context)
