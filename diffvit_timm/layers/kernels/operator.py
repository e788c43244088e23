"""Differential attention as a PyTorch operator with one kernel per device.

torch.compile calls the operator as it is, without a graph break. Autograd saves only the inputs for
the backward pass, where the kernels recompute the maps.
"""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from . import cpu
from .layout import BranchDims, empty_tokens_first

__all__ = ["attend", "attend_and_norm", "has_kernel"]

# Limits of the CUDA kernel.
CUDA_DTYPES = (torch.float16, torch.bfloat16)
CUDA_MAX_HEAD_WIDTH = 128


def has_kernel(q: Tensor, v: Tensor, branch_dims: BranchDims) -> bool:
    """Return whether `attend` has a kernel for these queries and values that is better than PyTorch's fused attention.

    With gradients the CPU kernel is always preferred, because it stores less for the backward pass.
    """
    if q.device.type == "cpu":
        return torch.is_grad_enabled() or cpu.is_faster(v, branch_dims)
    fits = q.device.type == "cuda" and q.dtype in CUDA_DTYPES and v.shape[-1] <= CUDA_MAX_HEAD_WIDTH
    return fits and _gpu_runs_kernel(q.device.index)


@torch.compiler.assume_constant_result
def _gpu_runs_kernel(device_index: int) -> bool:
    """Return whether the CUDA kernel supports a GPU: an NVIDIA GPU of the Ampere generation or later, with Triton."""
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device_index) >= (8, 0)


def _as_branch_dims(branch_dims: Sequence[int] | None) -> BranchDims:
    """Convert the branch widths to a tuple. The schema of an operator has lists only."""
    return None if branch_dims is None else (branch_dims[0], branch_dims[1])


@torch.library.custom_op("diffvit_timm::attend", mutates_args=(), device_types="cpu")
def attend(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: Sequence[int] | None, scale: float) -> Tensor:
    """Compute differential attention without a mask, dropout or norm.

    Args:
        q, k, v, branch_dims, scale: as in `differential_attention`.
        lam: lambda, (B, H, N, 1).

    Returns:
        The output of each head, (B, H, N, Dv), in the memory order (B, N, H, Dv).
    """
    return cpu.forward(q, k, v, lam, _as_branch_dims(branch_dims), scale)


@attend.register_kernel("cuda")
def _(q, k, v, lam, branch_dims, scale):
    from . import cuda  # not at the top: it imports triton, which is not part of every installation

    return cuda.forward(q, k, v, lam, _as_branch_dims(branch_dims), scale)


@attend.register_fake
def _(q, k, v, lam, branch_dims, scale):
    return empty_tokens_first(v)


@torch.library.custom_op("diffvit_timm::attend_backward", mutates_args=(), device_types="cpu")
def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: Sequence[int] | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k, v and lam from the gradient of the output, `grad`.

    Let A1 and A2 be the maps, D = A1 - lambda A2 their difference, and G = grad V^T the gradient of D, all (N, N) per
    head. With elementwise products and sums over the keys:

        dV      = D^T grad
        dlambda = -rowsum(G A2)
        dS1     = A1 (G - rowsum(G A1))              gradient of the logits of branch 1
        dS2     = -lambda A2 (G - rowsum(G A2))      gradient of the logits of branch 2
        dqi     = scale dSi ki,  dki = scale dSi^T qi    for the branches i = 1, 2

    In version 2 the gradient of k is dk1 + dk2.
    """
    return cpu.backward(grad, q, k, v, lam, _as_branch_dims(branch_dims), scale)


@attend_backward.register_kernel("cuda")
def _(grad, q, k, v, lam, branch_dims, scale):
    from . import cuda

    return cuda.backward(grad, q, k, v, lam, _as_branch_dims(branch_dims), scale)


@attend_backward.register_fake
def _(grad, q, k, v, lam, branch_dims, scale):
    return tuple(map(empty_tokens_first, (q, k, v, lam)))


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.branch_dims, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    return *attend_backward(grad, *ctx.saved_tensors, ctx.branch_dims, ctx.scale), None, None


attend.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("diffvit_timm::attend_and_norm", mutates_args=(), device_types="cpu")
def attend_and_norm(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, norm_weight: Tensor, branch_dims: Sequence[int] | None, scale: float
) -> Tensor:
    """Compute `attend` and the RMSNorm of each head in one pass, before the output is written.

    The operator has no gradients: those of the norm would need the output before the norm, which is not stored.

    Args:
        q, k, v, lam, branch_dims, scale: as in `attend`.
        norm_weight: weight of the norm, (Dv,).

    Returns:
        The normalised output of each head, as in `attend`.
    """
    return cpu.forward(q, k, v, lam, _as_branch_dims(branch_dims), scale, norm_weight)


@attend_and_norm.register_kernel("cuda")
def _(q, k, v, lam, norm_weight, branch_dims, scale):
    from . import cuda

    return cuda.forward(q, k, v, lam, _as_branch_dims(branch_dims), scale, norm_weight)


@attend_and_norm.register_fake
def _(q, k, v, lam, norm_weight, branch_dims, scale):
    return empty_tokens_first(v)
