"""Differential attention of a packed projection on a GPU in eager mode, where it is one autograd function.

With a small batch a GPU waits for Python. There the views of the heads, lambda from its four vectors, and the nodes of
autograd behind these operations take longer than the kernels.
"""

from collections.abc import Sequence

from torch import Tensor

from .layout import Sizes
from .modes import gpu_runs_triton, is_eager, on_gpu, only_builtin_operators
from .operator import CUDA_DTYPES, CUDA_MAX_WIDTH

__all__ = ["attend_packed", "takes_packed"]


def takes_packed(packed: Tensor, head_dim: int, vectors: Sequence[Tensor]) -> bool:
    """Return whether `attend_packed` can run.

    Args:
        packed: a projection, or what stands for it while something traces the call.
        head_dim: width of a head in the values. The branches are not wider.
        vectors: the vectors of lambda, if lambda comes from them.
    """
    if not all(is_eager(tensor) and on_gpu(tensor) for tensor in (packed, *vectors[:1])) or only_builtin_operators():
        return False
    return packed.dtype in CUDA_DTYPES and head_dim <= CUDA_MAX_WIDTH and gpu_runs_triton(packed.device.index)


def attend_packed(
    packed: Tensor, lambda_inputs: Sequence[Tensor], sizes: Sizes, norm_weight: Tensor | None = None
) -> Tensor:
    """Compute differential attention of a projection, without a mask or dropout.

    Args:
        packed: queries, keys and values, (B, N, all their channels).
        lambda_inputs: lambda, a scalar or (B, H, N, 1); or the five arguments of `vector_lambda`.
        sizes: sizes of the call.
        norm_weight: weight (Dv,) of an RMSNorm of each head, or None.

    Returns:
        The merged outputs of the heads, (B, N, H Dv).
    """
    from . import cuda_packed  # not at the top: it imports triton

    return cuda_packed.attend_packed(packed, lambda_inputs, sizes, norm_weight)
