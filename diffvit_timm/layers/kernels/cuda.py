"""Differential attention on a CUDA GPU: calls of the Triton kernels in cuda_kernels.py."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cuda_blocks import kernel_constants
from .cuda_kernels import forward_kernel, key_gradient_kernel, query_gradient_kernel
from .cuda_launch import Kernel
from .layout import HEAD_NORM_EPS, BranchDims, Sizes, empty_tokens_first

__all__ = ["backward", "forward", "launch_forward", "launch_gradients", "readable"]

LOG2_E = 1.4426950408889634


@functools.cache
def _kernels(sizes: Sizes, device: torch.device) -> tuple[Kernel, Kernel, Kernel]:
    """Return the three kernels for a GPU, or for the CPU of Triton's interpreter."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    constants = kernel_constants(sizes.q_width, sizes.v_width, sizes.branch_dims, sizes.N, 10 * major + minor)
    forward, queries, keys = map(Kernel, (forward_kernel, query_gradient_kernel, key_gradient_kernel), constants)
    return forward, queries, keys


def launch_forward(sizes: Sizes, tensors: Sequence[Tensor | None], strides: Sequence[int]) -> None:
    """Launch the forward kernel.

    Args:
        sizes: sizes of the call.
        tensors: q, k, v, lambda, the weight of the norm, out, out2 and lse.
        strides: strides of q, k, v and lambda over images, heads and tokens.
    """
    out: Any = tensors[5]
    kernel = _kernels(sizes, out.device)[0]
    programs = out.shape[0] * sizes.H * -(-sizes.N // kernel.settings["BLOCK_Q"])
    with torch.cuda.device_of(out):  # Triton launches kernels on the current device
        kernel.launch(programs, tensors, (*strides, sizes.H, sizes.N, sizes.scale * LOG2_E, HEAD_NORM_EPS))


def launch_gradients(
    sizes: Sizes,
    inputs: Sequence[Tensor],
    kept: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    grads: Sequence[Tensor],
    strides: Sequence[int],
) -> None:
    """Launch the two kernels of the gradients.

    Args:
        sizes: sizes of the call.
        inputs: q, k, v and lambda.
        kept: out, out2 and lse of the forward kernel.
        grad: gradient of the output.
        grads: where the gradients of q, k, v and lambda are written.
        strides: strides of the inputs and of grad over images, heads and tokens.
    """
    (out, out2, lse), (grad_q, grad_k, grad_v, grad_lam) = kept, grads
    _, query_kernel, key_kernel = _kernels(sizes, out.device)
    heads, delta = out.shape[0] * sizes.H, torch.empty_like(lse)
    of_q, of_k, of_v = ((part.stride(0), part.stride(-2)) for part in grads[:3])  # over images and tokens
    numbers = (sizes.H, sizes.N, sizes.scale * LOG2_E, sizes.scale)
    with torch.cuda.device_of(out):
        # The first kernel fills delta for the second one.
        query_kernel.launch(
            heads * -(-sizes.N // query_kernel.settings["BLOCK_Q"]),
            (*inputs, out, out2, lse, grad, grad_q, grad_lam, delta),
            (*strides, *of_q, *numbers),
        )
        key_kernel.launch(
            heads * -(-sizes.N // key_kernel.settings["BLOCK_K"]),
            (*inputs, lse, grad, delta, grad_k, grad_v),
            (*strides, *of_k, *of_v, *numbers),
        )


def _strides(*tensors: Tensor) -> list[int]:
    """Return the strides of each tensor, (B, H, N, d), over images, heads and tokens."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def readable(*tensors: Tensor) -> list[Tensor]:
    """Copy the tensors that the kernels cannot read as they lie in memory. They can read those of a projection.

    The channels must lie side by side, and the offset of a token within its head must fit into 32 bits.
    """
    return [tensor if is_readable(tensor) else tensor.contiguous() for tensor in tensors]


def is_readable(tensor: Tensor) -> bool:
    return tensor.stride(-1) == 1 and tensor.shape[-2] * tensor.stride(-2) < 2**31


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    branch_dims: BranchDims,
    scale: float,
    norm_weight: Tensor | None = None,
    for_backward: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute `operator.attend`."""
    B, H, N, v_width = v.shape
    q, k, v = readable(q, k, v)
    out = empty_tokens_first(v)
    out2, lse = (empty_tokens_first(v), lam.new_empty(B, H, 2, N)) if for_backward else (None, None)
    sizes = Sizes(H, N, q.shape[-1], v_width, branch_dims, scale)
    launch_forward(sizes, (q, k, v, lam, norm_weight, out, out2, lse), _strides(q, k, v, lam))
    return out, out2, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    out: Tensor,
    out2: Tensor,
    lse: Tensor,
    branch_dims: BranchDims,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `operator.attend_backward`, whose docstring has the equations, and write it into `grads` of q, k, v."""
    _, H, N, v_width = v.shape
    grad, q, k, v = readable(grad, q, k, v)
    grad_lam = empty_tokens_first(lam)
    sizes = Sizes(H, N, q.shape[-1], v_width, branch_dims, scale)
    strides = _strides(q, k, v, lam, grad)
    launch_gradients(sizes, (q, k, v, lam), (out, out2, lse), grad, (*grads, grad_lam), strides)
    return *grads, grad_lam
