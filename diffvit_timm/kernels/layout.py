"""The memory order of what the kernels return."""

from torch import Tensor

__all__ = ["empty_tokens_first"]


def empty_tokens_first(like: Tensor) -> Tensor:
    """Empty, of the shape (B, H, N, d) of `like`, in the memory order (B, N, H, d) in which heads merge for nothing."""
    B, H, N, d = like.shape
    return like.new_empty(B, N, H, d).transpose(1, 2)
