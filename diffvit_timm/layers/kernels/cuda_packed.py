"""Differential attention of a packed projection on a CUDA GPU, with gradients, as one function.

The kernels read queries, keys and values where the projection wrote them, and write their gradients into one tensor.
Their places follow from the sizes, so nothing is split, reshaped or transposed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import cuda_lambda
from .cuda import launch_forward, launch_gradients, readable
from .layout import HEAD_NORM_EPS, Sizes
from .modes import is_eager
from .operator import attend_backward

__all__ = ["attend_packed"]


def attend_packed(
    packed: Tensor, lambda_inputs: Sequence[Tensor], sizes: Sizes, norm_weight: Tensor | None = None
) -> Tensor:
    """Compute `packed.attend_packed`."""
    if len(lambda_inputs) == 1:
        lam = lambda_inputs[0].float()
        lambda_inputs = (lam if lam.dim() == 4 else lam.expand(len(packed), sizes.H, sizes.N, 1),)
    if not torch.is_grad_enabled():
        return _forward(packed, _lambda(lambda_inputs), sizes, norm_weight)[0]
    if any(tensor.requires_grad for tensor in (packed, *lambda_inputs)):
        out: Tensor = _AttendPacked.apply(sizes, packed, *lambda_inputs)
    else:
        out = _forward(packed, _lambda(lambda_inputs), sizes)[0]
    if norm_weight is None:
        return out
    return F.rms_norm(out.unflatten(-1, (sizes.H, -1)), [sizes.v_width], norm_weight, HEAD_NORM_EPS).flatten(-2)


class _AttendPacked(torch.autograd.Function):
    """`attend_packed` with gradients."""

    @staticmethod
    def forward(ctx: Any, sizes: Sizes, packed: Tensor, *lambda_inputs: Tensor) -> Tensor:
        lam = _lambda(lambda_inputs)
        out, out2, lse = _forward(packed, lam, sizes, for_backward=True)
        ctx.sizes = sizes
        ctx.save_for_backward(packed, lam, out, out2, lse, *lambda_inputs[:4])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        packed, lam, out, out2, lse, *vectors = ctx.saved_tensors
        compute = _backward if is_eager(grad) else _backward_by_operators
        grad_packed, grad_lam = compute(grad, packed, lam, out, out2, lse, ctx.sizes)
        if len(vectors) == 1:  # lambda itself
            return None, grad_packed, grad_lam.transpose(1, 2).unsqueeze(-1)
        if not any(ctx.needs_input_grad[2:]):
            return None, grad_packed, None, None, None, None, None
        return None, grad_packed, *_vector_gradients(grad_lam.sum(), lam, vectors), None


def _lambda(lambda_inputs: Sequence[Tensor]) -> Tensor:
    """Return lambda, (B, H, N, 1); or a vector that begins with the lambda of all queries, if there are vectors."""
    return lambda_inputs[0] if len(lambda_inputs) == 1 else cuda_lambda.forward(*lambda_inputs)


def _forward(
    packed: Tensor, lam: Tensor, sizes: Sizes, norm_weight: Tensor | None = None, for_backward: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute the output, (B, N, H Dv), and what `operator.attend_operator` keeps for the backward pass, or None."""
    (packed,) = readable(packed)
    B, N, _ = packed.shape
    out = packed.new_empty(B, N, sizes.H * sizes.v_width)
    out2, lse = (torch.empty_like(out), lam.new_empty(B, sizes.H, 2, N)) if for_backward else (None, None)
    tensors = (*_parts(packed, sizes), lam, norm_weight, out, out2, lse)
    launch_forward(sizes, tensors, _strides(packed, lam, sizes))
    return out, out2, lse


def _backward(
    grad: Tensor, packed: Tensor, lam: Tensor, out: Tensor, out2: Tensor, lse: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the projection, and of lambda for each query and head, (B, N, H)."""
    grad, packed = readable(grad, packed)
    grad_packed = torch.empty_like(packed, memory_format=torch.contiguous_format)
    grad_lam = lam.new_empty(len(packed), sizes.N, sizes.H)
    strides = (*_strides(packed, lam, sizes), grad.stride(0), sizes.v_width, grad.stride(1))
    inputs, grads = (*_parts(packed, sizes), lam), (*_parts(grad_packed, sizes), grad_lam)
    launch_gradients(sizes, inputs, (out, out2, lse), grad, grads, strides)
    return grad_packed, grad_lam


def _parts(packed: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors that begin at the queries, at the keys and at the values of a projection."""
    q_width, v_width = sizes.H * sizes.q_width, sizes.H * sizes.v_width
    k_width = packed.shape[-1] - q_width - v_width
    return packed, packed.narrow(-1, q_width, k_width), packed.narrow(-1, q_width + k_width, v_width)


def _strides(packed: Tensor, lam: Tensor, sizes: Sizes) -> tuple[int, ...]:
    """Return the strides of queries, keys, values and lambda over images, heads and tokens."""
    image, token, _ = packed.stride()
    k_width = sizes.q_width if sizes.branch_dims else sizes.q_width // 2
    of_lam = lam.stride()[:3] if lam.dim() == 4 else (0, 0, 0)
    return image, sizes.q_width, token, image, k_width, token, image, sizes.v_width, token, *of_lam


def _backward_by_operators(
    grad: Tensor, packed: Tensor, lam: Tensor, out: Tensor, out2: Tensor, lse: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    """Compute `_backward` where a kernel cannot be called directly (see `is_eager`)."""
    B, N, _ = packed.shape
    H, v_width = sizes.H, sizes.H * sizes.v_width
    q, k, v = packed.tensor_split((H * sizes.q_width, packed.shape[-1] - v_width), dim=-1)
    # Batches of gradients have `reshape`, but neither `unflatten` nor `flatten`.
    heads = [t.reshape(B, N, H, -1).transpose(1, 2) for t in (grad, q, k, v, out, out2)]  # (B, H, N, d)
    if lam.dim() == 1:
        lam = lam[0].expand(B, H, N, 1)
    *grads, grad_lam = attend_backward(*heads[:4], lam, *heads[4:], lse, sizes.branch_dims, sizes.scale)
    grad_packed = torch.cat([t.transpose(1, 2).reshape(B, N, -1) for t in grads], dim=-1)
    return grad_packed, grad_lam.squeeze(-1).transpose(1, 2)


def _vector_gradients(grad: Tensor, lam: Tensor, vectors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Compute the gradients of the vectors of lambda from that of lambda, and lambda with its two exponentials."""
    if is_eager(grad):
        return cuda_lambda.backward(grad, lam, vectors)
    q1, k1, q2, k2 = vectors
    grad1, grad2 = grad * lam[1], -grad * lam[2]
    return [(factor * of).to(of.dtype) for factor, of in ((grad1, k1), (grad1, q1), (grad2, k2), (grad2, q2))]
