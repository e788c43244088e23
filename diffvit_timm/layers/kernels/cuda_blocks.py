"""Block sizes and other constants of the Triton kernels in cuda_kernels.py."""

import triton

from .layout import BranchDims

__all__ = ["kernel_constants"]

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


def kernel_constants(
    q_width: int, v_width: int, branch_dims: BranchDims, N: int, capability: int
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Return all constants of the three kernels.

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
