"""Differential attention on a CUDA GPU: launches of the Triton kernels in cuda_kernels.py, and their block sizes."""

import functools

import torch
import triton
from torch import Tensor

from .cuda_kernels import forward_kernel, key_gradient_kernel, query_gradient_kernel
from .layout import HEAD_NORM_EPS, BranchDims, empty_tokens_first

__all__ = ["backward", "forward"]

LOG2_E = 1.4426950408889634

# Block sizes of the three kernels. Those for Hopper were the fastest in a sweep on an H100. The operands of a product
# lie in shared memory there, so a limit of the registers lets more programs run at a time. Those for other GPUs were
# chosen from reports of the compiler, so that few registers spill, and were not timed.
Blocks = dict[str, int]
SMALL_BLOCKS = dict(BLOCK_Q=32, BLOCK_K=32, num_warps=4, num_stages=2)


def forward_blocks(width: int, N: int, hopper: bool) -> Blocks:
    """Return the block sizes of the forward kernel for heads of a padded width and N tokens."""
    if not hopper:
        return dict(BLOCK_Q=64, BLOCK_K=32, num_warps=4, num_stages=3) if width <= 64 else SMALL_BLOCKS
    if width > 64:
        return dict(BLOCK_Q=64, BLOCK_K=64, num_warps=4, num_stages=2)
    if N <= 256:
        return dict(BLOCK_Q=64, BLOCK_K=32, num_warps=4, num_stages=3, maxnreg=128)
    return dict(BLOCK_Q=64, BLOCK_K=64, num_warps=4, num_stages=3, maxnreg=168)


def query_gradient_blocks(width: int, hopper: bool) -> Blocks:
    """Return the block sizes of the gradient of the queries for heads of a padded width."""
    if width > 64:
        return dict(BLOCK_Q=64, BLOCK_K=32, num_warps=4, num_stages=2) if hopper else SMALL_BLOCKS
    return dict(BLOCK_Q=64, BLOCK_K=32, num_warps=4, num_stages=3) | ({"maxnreg": 128} if hopper else {})


def key_gradient_blocks(width: int, hopper: bool) -> Blocks:
    """Return the block sizes of the gradient of the keys and values for heads of a padded width."""
    if not hopper:
        return dict(BLOCK_Q=32 if width <= 64 else 16, BLOCK_K=64 if width <= 64 else 32, num_warps=4, num_stages=2)
    if width > 64:
        return dict(BLOCK_Q=32, BLOCK_K=128, num_warps=8, num_stages=1)
    return dict(BLOCK_Q=32, BLOCK_K=64, num_warps=4, num_stages=3, maxnreg=168)


def _pad(width: int) -> int:
    """Round a width up to a power of 2, and at least to the 16 that a matrix product needs."""
    return max(16, triton.next_power_of_2(width))


def width_constants(q_width: int, v_width: int, branch_dims: BranchDims) -> dict[str, int]:
    """Return the constants of the kernels that depend on the widths of the queries, the values and the branches."""
    d1, d2 = branch_dims or (q_width // 2, q_width // 2)
    widths = dict(D1=d1, D2=d2, DV=v_width, K2_OFFSET=d1 if branch_dims else 0)
    return widths | dict(D1_PAD=_pad(d1), D2_PAD=_pad(d2), DV_PAD=_pad(v_width))


@functools.cache
def kernel_constants(
    q_width: int, v_width: int, branch_dims: BranchDims, N: int, capability: int
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return all constants of the three kernels. They are looked up at every call, so they are kept.

    Args:
        q_width, v_width: widths of a head in the queries and in the values.
        branch_dims: as in `differential_attention`.
        N: number of tokens.
        capability: compute capability of the GPU, times 10.
    """
    widths = width_constants(q_width, v_width, branch_dims)
    width = max(widths["D1_PAD"], widths["D2_PAD"], widths["DV_PAD"])
    hopper = capability // 10 == 9
    return (
        widths | forward_blocks(width, N, hopper),
        widths | query_gradient_blocks(width, hopper),
        widths | key_gradient_blocks(width, hopper),
    )


@functools.cache
def _capability(device: torch.device) -> int:
    """Return the compute capability of a GPU, times 10; 0 for the CPU of Triton's interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _strides(*tensors: Tensor) -> list[int]:
    """Return the strides of each tensor over images, heads and tokens."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _readable(*tensors: Tensor) -> list[Tensor]:
    """Copy the tensors that the kernels cannot read as they lie in memory. They can read those of a projection.

    The channels must lie side by side, and the offset of a token within its head must fit into 32 bits.
    """
    return [tensor if _is_readable(tensor) else tensor.contiguous() for tensor in tensors]


def _is_readable(tensor: Tensor) -> bool:
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
    q, k, v = _readable(q, k, v)
    out = empty_tokens_first(v)
    out2, lse = (empty_tokens_first(v), lam.new_empty(B, H, 2, N)) if for_backward else (None, None)
    constants = kernel_constants(q.shape[-1], v_width, branch_dims, N, _capability(q.device))[0]
    with torch.cuda.device_of(q):  # Triton launches kernels on the current device
        forward_kernel[(B * H * triton.cdiv(N, constants["BLOCK_Q"]),)](
            q, k, v, lam, norm_weight, out, out2, lse, *_strides(q, k, v, lam),
            H, N, scale * LOG2_E, HEAD_NORM_EPS, **constants
        )  # fmt: skip
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
    B, H, N, v_width = v.shape
    grad, q, k, v = _readable(grad, q, k, v)
    (grad_q, grad_k, grad_v), grad_lam = grads, empty_tokens_first(lam)
    delta, strides = torch.empty_like(lse), _strides(q, k, v, lam, grad)
    _, query_constants, key_constants = kernel_constants(q.shape[-1], v_width, branch_dims, N, _capability(q.device))
    with torch.cuda.device_of(q):
        # The first kernel fills delta for the second one.
        query_gradient_kernel[(B * H * triton.cdiv(N, query_constants["BLOCK_Q"]),)](
            q, k, v, lam, out, out2, lse, grad, grad_q, grad_lam, delta,
            *strides, grad_q.stride(0), grad_q.stride(2), H, N, scale * LOG2_E, scale, **query_constants
        )  # fmt: skip
        key_gradient_kernel[(B * H * triton.cdiv(N, key_constants["BLOCK_K"]),)](
            q, k, v, lam, lse, grad, delta, grad_k, grad_v,
            *strides, grad_k.stride(0), grad_k.stride(2), grad_v.stride(0), grad_v.stride(2),
            H, N, scale * LOG2_E, scale, **key_constants
        )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_lam
