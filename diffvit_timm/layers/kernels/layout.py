"""Memory layout of the heads, and the eps of their norm. The kernels and their callers share them."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["HEAD_NORM_EPS", "BranchDims", "Sizes", "empty_tokens_first", "split_branches"]

# The widths (d1, d2) of the two branches of a head, or None if both branches read all of k (version 2).
BranchDims = tuple[int, int] | None

HEAD_NORM_EPS = 1e-5  # as in the paper and timm


class Sizes(NamedTuple):
    """Everything about a call that determines the kernels, and the softmax scale.

    Attributes:
        H, N: number of heads and of tokens.
        q_width, v_width: widths of a head in the queries and in the values.
        branch_dims, scale: as in `differential_attention`.
    """

    H: int
    N: int
    q_width: int
    v_width: int
    branch_dims: BranchDims
    scale: float


def split_branches(
    q: Tensor, k: Tensor, branch_dims: BranchDims
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split queries and keys into those of the two branches, as views.

    Args:
        q, k: queries and keys, (..., d1 + d2) each, with the channels of branch 1 first. In version 2 q is (..., 2 d)
            and k is (..., d).
        branch_dims: widths (d1, d2) of the two branches, or None if both branches read all of k (version 2).

    Returns:
        The pairs (q1, k1), (..., d1) each, and (q2, k2), (..., d2) each.
    """
    if branch_dims is None:
        q1, q2 = q.chunk(2, dim=-1)
        return (q1, k), (q2, k)
    d1 = branch_dims[0]
    return (q[..., :d1], k[..., :d1]), (q[..., d1:], k[..., d1:])


def empty_tokens_first(like: Tensor) -> Tensor:
    """Return an uninitialised tensor with the shape (B, H, N, d) of `like` and the memory order (B, N, H, d).

    In this order the heads of a token lie side by side, so they merge to (B, N, H d) without a copy.
    """
    B, H, N, d = like.shape
    return like.new_empty(B, N, H, d).transpose(1, 2)
