"""Lambda of version 1 from its four vectors, on any device."""

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from .modes import gpu_runs_triton, is_eager, on_gpu, only_builtin_operators

__all__ = ["vector_lambda"]


def _lambda_in_one_kernel(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, lambda_init: Tensor) -> Tensor:
    from . import cuda_lambda  # not at the top: it imports triton

    return cuda_lambda.vector_lambda(q1, k1, q2, k2, lambda_init)


@torch.fx.wrap
@register_notrace_function
def vector_lambda(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, lambda_init: Tensor) -> Tensor:
    """Compute lambda of version 1, `exp(q1 . k1) - exp(q2 . k2) + lambda_init` (equation 2 of the paper).

    Args:
        q1, k1, q2, k2: the vectors lambda_q1, lambda_k1, lambda_q2 and lambda_k2, of one shape (width,).
        lambda_init: scalar.

    Returns:
        Lambda, a float32 scalar.
    """
    if not torch.jit.is_scripting():
        eager_gpu = on_gpu(q1) and is_eager(q1) and not only_builtin_operators()
        if eager_gpu and gpu_runs_triton(q1.device.index):
            return _lambda_in_one_kernel(q1, k1, q2, k2, lambda_init)
    return torch.exp(torch.dot(q1, k1).float()) - torch.exp(torch.dot(q2, k2).float()) + lambda_init
