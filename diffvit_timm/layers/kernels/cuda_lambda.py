"""Lambda of version 1 on a CUDA GPU, in one Triton kernel, and its gradients in another one.

In eager mode, PyTorch would launch eight kernels for this one number, which takes longer than the attention of a small
batch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cuda_launch import Kernel

__all__ = ["backward", "forward", "vector_lambda"]


@triton.jit
def _lambda_kernel(q1, k1, q2, k2, lambda_init, result, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Store lambda and its two exponentials in `result`, (3,)."""
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    q1 = tl.load(q1 + columns, mask=inside, other=0.0).to(tl.float32)
    k1 = tl.load(k1 + columns, mask=inside, other=0.0).to(tl.float32)
    q2 = tl.load(q2 + columns, mask=inside, other=0.0).to(tl.float32)
    k2 = tl.load(k2 + columns, mask=inside, other=0.0).to(tl.float32)
    exp1, exp2 = tl.exp(tl.sum(q1 * k1, 0)), tl.exp(tl.sum(q2 * k2, 0))
    tl.store(result, exp1 - exp2 + tl.load(lambda_init))
    tl.store(result + 1, exp1)
    tl.store(result + 2, exp2)


@triton.jit
def _lambda_gradient_kernel(grad, result, q1, k1, q2, k2, grads, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Store the gradients of the four vectors in `grads`, (4, WIDTH): that of q1 is grad exp(q1 . k1) k1."""
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    grad1 = tl.load(grad) * tl.load(result + 1)
    grad2 = -tl.load(grad) * tl.load(result + 2)
    dtype = grads.dtype.element_ty
    grads += columns
    tl.store(grads, (grad1 * tl.load(k1 + columns, mask=inside)).to(dtype), mask=inside)
    tl.store(grads + WIDTH, (grad1 * tl.load(q1 + columns, mask=inside)).to(dtype), mask=inside)
    tl.store(grads + 2 * WIDTH, (grad2 * tl.load(k2 + columns, mask=inside)).to(dtype), mask=inside)
    tl.store(grads + 3 * WIDTH, (grad2 * tl.load(q2 + columns, mask=inside)).to(dtype), mask=inside)


@functools.cache
def _kernels(width: int) -> tuple[Kernel, Kernel]:
    """Return both kernels for vectors of a width."""
    settings = {"WIDTH": width, "PADDED": triton.next_power_of_2(width), "num_warps": 1}
    return Kernel(_lambda_kernel, settings), Kernel(_lambda_gradient_kernel, settings)


def forward(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, lambda_init: Tensor) -> Tensor:
    """Compute lambda and its two exponentials, (3,) in float32."""
    result = torch.empty(3, dtype=torch.float32, device=q1.device)
    with torch.cuda.device_of(q1):  # Triton launches kernels on the current device
        _kernels(len(q1))[0].launch(1, (q1, k1, q2, k2, lambda_init, result))
    return result


def backward(grad: Tensor, result: Tensor, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute the gradients of the four vectors.

    Args:
        grad: gradient of lambda, a float32 scalar.
        result: result of `forward`.
        vectors: the vectors q1, k1, q2 and k2.
    """
    width = len(vectors[0])
    grads = vectors[0].new_empty(4, width)
    with torch.cuda.device_of(result):
        _kernels(width)[1].launch(1, (grad, result, *vectors, grads))
    return grads.unbind()


class _VectorLambda(torch.autograd.Function):
    """`vector_lambda` with gradients."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> Tensor:
        result = forward(*args)
        ctx.save_for_backward(result, *args[:4])
        return result[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        result, *vectors = ctx.saved_tensors
        return *backward(grad, result, vectors), None


def vector_lambda(q1: Tensor, k1: Tensor, q2: Tensor, k2: Tensor, lambda_init: Tensor) -> Tensor:
    """Compute `exp(q1 . k1) - exp(q2 . k2) + lambda_init`, a float32 scalar, from contiguous vectors on a GPU."""
    if torch.is_grad_enabled() and any(vector.requires_grad for vector in (q1, k1, q2, k2)):
        scalar: Tensor = _VectorLambda.apply(q1, k1, q2, k2, lambda_init)
        return scalar
    return forward(q1, k1, q2, k2, lambda_init)[0]
