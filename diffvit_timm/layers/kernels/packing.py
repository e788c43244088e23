"""Split a projection into queries, keys and values so that the kernels write all three gradients into one tensor.

Autograd would copy the three gradients into the gradient of the projection.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from .modes import is_eager, only_builtin_operators

__all__ = ["empty_gradients", "split_projection"]


@torch.fx.wrap
@register_notrace_function
def split_projection(packed: Tensor, q_width: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a projection, (B, N, q_width + 2 width), into queries, keys and values, as views."""
    if not torch.jit.is_scripting():
        has_gradient = torch.is_grad_enabled() and packed.requires_grad
        if has_gradient and is_eager(packed) and not only_builtin_operators():
            parts: tuple[Tensor, Tensor, Tensor] = _Split.apply(packed, (q_width, width, width))
            return parts
    q, k, v = packed.split([q_width, width, width], dim=-1)
    return q, k, v


class _Split(torch.autograd.Function):
    """`split_projection`, with a gradient that is not copied if it lies in one tensor already."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.is_leaf = packed.is_leaf
        return packed.split(list(sizes), dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # Autograd adds later gradients of a leaf to the first one, in place, so that one must not be a view of ours.
        return torch.cat(list(grads), dim=-1) if ctx.is_leaf else _joined(grads), None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join parts, (B, N, size) each, along their channels: as a view if they lie side by side, otherwise by a copy."""
    if not all(map(is_eager, parts)):
        return torch.cat(list(parts), dim=-1)
    first = parts[0]
    B, N, _ = first.shape
    width, offset = sum(part.shape[-1] for part in parts), first.storage_offset()
    strides = (N * width, width, 1)
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        side_by_side = part.stride() == strides and part.storage_offset() == offset and not part.requires_grad
        if not side_by_side or part.untyped_storage().data_ptr() != storage:
            return torch.cat(list(parts), dim=-1)
        offset += part.shape[-1]
    return first.as_strided((B, N, width), strides)


def empty_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return uninitialised tensors like q, k and v, (B, H, N, d) each, that lie side by side in one tensor."""
    B, H, N, _ = v.shape
    sizes = [H * t.shape[-1] for t in (q, k, v)]
    packed = v.new_empty(B, N, sum(sizes))
    grad_q, grad_k, grad_v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in packed.split(sizes, dim=-1))
    return grad_q, grad_k, grad_v
