"""Differential attention on a CPU: the maps of a tile are made in the cache, and made again in the backward pass.

Flash attention would be called on twice the queries, each half zeros, and computes every product of them. Here each
branch costs its own width, the maps are subtracted before they meet the values, and no map outlives its tile.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import HEAD_NORM_EPS, BranchDims, empty_tokens_first, split_branches

__all__ = ["backward", "forward", "pays"]

# Of the two maps of a tile. Measured on 2 cores with 1 MiB of L2 each: 1 and 8 MiB are slower. Of long images a tile is
# larger: products of fewer queries with thousands of keys cost more than the cache gains.
TILE_BYTES = 4 << 20
TILE_QUERIES = 256

# Tokens up to which the tiles are faster in float32.
FLOAT32_TOKENS = 1280

softmax_backward_out = torch.ops.aten._softmax_backward_data.out


def pays(v: Tensor, branch_dims: BranchDims) -> bool:
    """Whether the tiles are faster, without gradients, than flash attention on twice the queries.

    Not so in float32, whose products are half as fast as those of bfloat16 and where flash attention's are the same:
    with version 2, of whose queries no half is zeros, and with many tokens.
    """
    return v.dtype != torch.float32 or (branch_dims is not None and v.shape[-2] <= FLOAT32_TOKENS)


def _tiles(shape: Sequence[int], itemsize: int) -> tuple[int, int]:
    """How many images and how many of their N queries make a tile, of (B, H, N, ...); fewer than all N only alone."""
    B, H, N = shape[:3]
    row = 2 * H * N * itemsize
    images = max(1, min(B, TILE_BYTES // (row * N)))
    queries = min(N, max(TILE_QUERIES, TILE_BYTES // row)) if images == 1 else N
    return _evenly(B, images), _evenly(N, queries)


def _evenly(total: int, most: int) -> int:
    """The largest part of `total` when it is cut into as few parts of about equal size as keep to `most`."""
    parts = max(1, math.ceil(total / most))
    return max(1, math.ceil(total / parts))


def _slices(total: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def _flat(x: Tensor) -> Tensor:
    """(B, H, N, d) as (B H, N, d), contiguous where it was not."""
    return x.reshape(-1, *x.shape[-2:])


def _part(branches: Sequence[Tensor], where: Any) -> tuple[Tensor, Tensor]:
    """A part of the queries or keys of both branches, flat; version 2's one key is copied once."""
    one, other = branches
    first = _flat(one[where])
    return first, first if other is one else _flat(other[where])


def _put(part: Tensor, to: Tensor, first: bool = True) -> None:
    """Write a part of the result, or add it to what an earlier tile wrote."""
    part = part.view(to.shape)
    if first:
        to.copy_(part)
    else:
        to.add_(part)


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale a b, (B, R, S) of (B, R, d) and (B, d, S), in one pass: to scale a first would copy it."""
    out = a.new_empty(*a.shape[:2], b.shape[2]) if out is None else out
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _maps(queries: Sequence[Tensor], keys: Sequence[Tensor], scale: float, memory: Tensor) -> Tensor:
    """(2, B H, R, N), in `memory`, from the queries (B H, R, d) and keys (B H, N, d) of each branch."""
    maps = _view(memory, (2, *queries[0].shape[:2], keys[0].shape[1]))
    for q, k, logits in zip(queries, keys, maps, strict=True):
        _product(q, k.mT, scale, out=logits)
    return torch.softmax(maps, dim=-1, out=maps)


def _view(memory: Tensor, shape: Sequence[int]) -> Tensor:
    """The first of `memory`, in a shape."""
    return memory[: torch.Size(shape).numel()].view(shape)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    branch_dims: BranchDims,
    scale: float,
    norm_weight: Tensor | None = None,
) -> Tensor:
    """As `operator.attend`, or with norm_weight as `operator.attend_and_norm`."""
    B, H, N, _ = v.shape
    out = empty_tokens_first(v)
    images, rows = _tiles(v.shape, v.element_size())
    memory = v.new_empty(2 * images * H * rows * N)
    # before they are copied: products of a part of the channels are slower
    all_queries, all_keys = zip(*split_branches(q, k, branch_dims), strict=True)
    for image in _slices(B, images):
        keys, values = _part(all_keys, image), _flat(v[image])
        for query in _slices(N, rows):
            map1, map2 = _maps(_part(all_queries, (image, slice(None), query)), keys, scale, memory)
            map1.addcmul_(map2, _flat(lam[image, :, query]), value=-1)
            heads = torch.bmm(map1, values)
            if norm_weight is not None:
                heads = F.rms_norm(heads, norm_weight.shape, norm_weight, HEAD_NORM_EPS)
            _put(heads, out[image, :, query])
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: BranchDims, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `operator.attend_backward`."""
    B, H, N, _ = v.shape
    grad_q, grad_k, grad_v, grad_lam = map(empty_tokens_first, (q, k, v, lam))
    images, rows = _tiles(v.shape, v.element_size())
    memory, more = v.new_empty(2, 2 * images * H * rows * N)
    all_queries, all_keys = zip(*split_branches(q, k, branch_dims), strict=True)
    for image in _slices(B, images):
        keys, values = _part(all_keys, image), _flat(v[image])
        for query in _slices(N, rows):
            queries = _part(all_queries, (image, slice(None), query))
            maps = _maps(queries, keys, scale, memory)
            product, grad_map = _view(more, maps.shape)
            grads, lams, first = _flat(grad[image, :, query]), _flat(lam[image, :, query]), query.start == 0

            torch.bmm(grads, values.mT, out=grad_map)
            torch.mul(grad_map, maps[1], out=product)
            _put(product.sum(-1, keepdim=True).neg_(), grad_lam[image, :, query])
            torch.addcmul(maps[0], maps[1], lams, value=-1, out=product)
            _put(torch.bmm(product.mT, grads), grad_v[image], first)

            for one in maps:  # each map becomes the gradient of its logits
                softmax_backward_out(grad_map, one, -1, one.dtype, grad_input=one)
            (to_q1, to_k1), (to_q2, to_k2) = split_branches(grad_q[image, :, query], grad_k[image], branch_dims)
            _put(_product(maps[0], keys[0], scale), to_q1)
            _put(_product(maps[0].mT, queries[0], scale), to_k1, first)
            _put(_product(maps[1], keys[1], -scale).mul_(lams), to_q2)
            second = _product(maps[1].mT, lams * queries[1], -scale)
            _put(second, to_k2, first and branch_dims is not None)  # or all in one key
    return grad_q, grad_k, grad_v, grad_lam
