"""What the kernels and their callers share: how heads lie in memory, and the eps of their norm."""

from torch import Tensor

__all__ = ["HEAD_NORM_EPS", "BranchDims", "empty_tokens_first", "split_branches"]

BranchDims = tuple[int, int] | None

HEAD_NORM_EPS = 1e-5  # the paper's and timm's


def split_branches(
    q: Tensor, k: Tensor, branch_dims: BranchDims
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((q1, k1), (q2, k2)), the queries and keys of each branch; any rank, channels last.

    Args:
        q, k: (..., d1 + d2), the channels of branch 1 first; V2: q (..., 2 d) and k (..., d).
        branch_dims: (d1, d2), the widths of the two branches; None: both branches read all of k (V2).
    """
    if branch_dims is None:
        q1, q2 = q.chunk(2, dim=-1)
        return (q1, k), (q2, k)
    d1 = branch_dims[0]
    return (q[..., :d1], k[..., :d1]), (q[..., d1:], k[..., d1:])


def empty_tokens_first(like: Tensor) -> Tensor:
    """Empty, of the shape (B, H, N, d) of `like`, in the memory order (B, N, H, d) in which heads merge for nothing."""
    B, H, N, d = like.shape
    return like.new_empty(B, N, H, d).transpose(1, 2)
