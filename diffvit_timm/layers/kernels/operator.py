"""Differential attention as one operator, with a kernel a device: torch.compile calls it as it is.

No map is kept for the backward pass, and nothing else but the inputs: the kernels make the maps again.
"""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import cpu
from .layout import BranchDims, empty_tokens_first

__all__ = ["attend", "attend_and_norm", "has_kernel"]

HALF = (torch.float16, torch.bfloat16)
WIDEST_HEAD = 128  # of the CUDA kernel


def has_kernel(q: Tensor, v: Tensor, branch_dims: BranchDims) -> bool:
    """Whether `attend` runs where these queries and values are, and is the best there; with gradients it keeps less."""
    if q.device.type == "cpu":
        return torch.is_grad_enabled() or cpu.pays(v, branch_dims)
    known = q.device.type == "cuda" and q.dtype in HALF and v.shape[-1] <= WIDEST_HEAD
    return known and _runs_triton(q.device.index)


@torch.compiler.assume_constant_result
def _runs_triton(index: int) -> bool:
    """Whether a GPU is one that the CUDA kernel was compiled for: NVIDIA's, Ampere or later."""
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(index) >= (8, 0)


def _pair(branch_dims: Sequence[int] | None) -> BranchDims:
    """The schema of an operator knows lists, and no pairs."""
    return None if branch_dims is None else (branch_dims[0], branch_dims[1])


@torch.library.custom_op("diffvit_timm::attend", mutates_args=(), device_types="cpu")
def attend(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: Sequence[int] | None, scale: float) -> Tensor:
    """`differential_attention` without a mask or dropout.

    Args:
        q, k, v, branch_dims, scale: as there.
        lam: (B, H, N, 1).

    Returns:
        (B, H, N, Dv), in the memory order (B, N, H, Dv).
    """
    return cpu.forward(q, k, v, lam, _pair(branch_dims), scale)


@attend.register_kernel("cuda")
def _(q, k, v, lam, branch_dims, scale):
    from ..kernels import cuda  # triton, which not every installation has

    return cuda.forward(q, k, v, lam, _pair(branch_dims), scale)


@attend.register_fake
def _(q, k, v, lam, branch_dims, scale):
    return empty_tokens_first(v)


@torch.library.custom_op("diffvit_timm::attend_backward", mutates_args=(), device_types="cpu")
def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: Sequence[int] | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and lam.

    With D = A1 - lambda A2 and G = grad V^T: dV = D^T grad, dlambda = -rowsum(G A2), and through each softmax
    dS1 = A1 (G - rowsum(G A1)), dS2 = -lambda A2 (G - rowsum(G A2)).
    """
    return cpu.backward(grad, q, k, v, lam, _pair(branch_dims), scale)


@attend_backward.register_kernel("cuda")
def _(grad, q, k, v, lam, branch_dims, scale):
    from ..kernels import cuda

    return cuda.backward(grad, q, k, v, lam, _pair(branch_dims), scale)


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
    """`attend`, and the norm of each head before its output is written; without gradients, which need that output.

    Args:
        q, k, v, lam, branch_dims, scale: as in `attend`.
        norm_weight: (Dv,), of the norm.
    """
    return cpu.forward(q, k, v, lam, _pair(branch_dims), scale, norm_weight)


@attend_and_norm.register_kernel("cuda")
def _(q, k, v, lam, norm_weight, branch_dims, scale):
    from ..kernels import cuda

    return cuda.forward(q, k, v, lam, _pair(branch_dims), scale, norm_weight)


@attend_and_norm.register_fake
def _(q, k, v, lam, norm_weight, branch_dims, scale):
    return empty_tokens_first(v)
