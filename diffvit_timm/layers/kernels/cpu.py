"""Differential attention on a CPU. The maps of a tile are computed in the cache, and recomputed in the backward pass.

PyTorch's flash attention would need twice the queries, each half zeros, and would compute every product with the zeros.
Here each branch costs only its own width, the maps are subtracted before they are multiplied with the values, and no
map outlives its tile.

A tile is a group of images with all their queries or, if an image is too large, a group of queries of one image. A tile
always has all N keys, so its rows of the maps are complete and no online softmax is needed.

Shapes: B images, H heads, N tokens, R queries in a tile. BH is the images of a tile times the heads.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import HEAD_NORM_EPS, BranchDims, empty_tokens_first, split_branches

__all__ = ["backward", "forward", "is_faster"]

# Size of the two maps of a tile. Measured on 2 cores with 1 MiB of L2 cache each: 1 and 8 MiB are slower.
TILE_BYTES = 4 << 20
# Minimum number of queries in a tile, which makes the tiles of large images larger than TILE_BYTES: products of fewer
# queries with thousands of keys cost more than the cache gains.
TILE_QUERIES = 256

# Number of tokens up to which the tiles are faster in float32.
FLOAT32_TOKENS = 1280

softmax_backward_out = torch.ops.aten._softmax_backward_data.out


def is_faster(v: Tensor, branch_dims: BranchDims) -> bool:
    """Return whether the tiles are faster, without gradients, than flash attention on twice the queries.

    In float32 they are slower with many tokens, and in version 2, whose queries have no zeros. The reason is that the
    products of the tiles are half as fast in float32 as in bfloat16, while those of flash attention are equally fast.
    """
    return v.dtype != torch.float32 or (branch_dims is not None and v.shape[-2] <= FLOAT32_TOKENS)


def _tile_size(shape: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Choose the numbers of images and of queries per image in a tile.

    Args:
        shape: shape of the values, (B, H, N, ...).
        itemsize: bytes per entry of a map.

    Returns:
        The number of images, and the number of queries, which is below N only for a single image.
    """
    B, H, N = shape[:3]
    row_bytes = 2 * H * N * itemsize  # both maps of one query, for all heads
    images = max(1, min(B, TILE_BYTES // (row_bytes * N)))
    queries = min(N, max(TILE_QUERIES, TILE_BYTES // row_bytes)) if images == 1 else N
    return _even_step(B, images), _even_step(N, queries)


def _even_step(total: int, max_step: int) -> int:
    """Return the step that cuts `total` into as few parts of at most `max_step` as possible, of about equal size."""
    parts = max(1, math.ceil(total / max_step))
    return max(1, math.ceil(total / parts))


def _slices(total: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def _merge_heads(x: Tensor) -> Tensor:
    """Reshape (B, H, N, d) to (BH, N, d) for batched matrix products. This copies x unless it is contiguous."""
    return x.reshape(-1, *x.shape[-2:])


def _tile_of(branches: Sequence[Tensor], index: Any) -> tuple[Tensor, Tensor]:
    """Select a tile of the queries or keys of both branches, as (BH, R, d1) and (BH, R, d2)."""
    branch1, branch2 = branches
    tile1 = _merge_heads(branch1[index])
    # Both branches of version 2 have the same keys, which are copied only once.
    return tile1, tile1 if branch2 is branch1 else _merge_heads(branch2[index])


def _write(tile: Tensor, out: Tensor, add: bool = False) -> None:
    """Write a tile, (BH, R, d), to its place in the result, or add it to what earlier tiles wrote there."""
    tile = tile.view(out.shape)
    if add:
        out.add_(tile)
    else:
        out.copy_(tile)


def _scaled_bmm(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """Compute scale a b, (BH, R, S), from (BH, R, d) and (BH, d, S). Scaling a or b beforehand would copy it."""
    out = a.new_empty(*a.shape[:2], b.shape[2]) if out is None else out
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _softmax_maps(queries: Sequence[Tensor], keys: Sequence[Tensor], scale: float, maps_buf: Tensor) -> Tensor:
    """Compute both maps, (2, BH, R, N), in a buffer, from the queries (BH, R, d) and keys (BH, N, d) of each branch."""
    maps = _view_buffer(maps_buf, (2, *queries[0].shape[:2], keys[0].shape[1]))
    for q, k, logits in zip(queries, keys, maps, strict=True):
        _scaled_bmm(q, k.mT, scale, out=logits)
    return torch.softmax(maps, dim=-1, out=maps)


def _view_buffer(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    """View the beginning of a flat buffer in a shape. The last tile can be smaller than the buffer."""
    return buffer[: torch.Size(shape).numel()].view(shape)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    branch_dims: BranchDims,
    scale: float,
    norm_weight: Tensor | None = None,
) -> Tensor:
    """Compute `operator.attend`."""
    B, H, N, _ = v.shape
    out = empty_tokens_first(v)  # (B, H, N, Dv)
    tile_images, tile_queries = _tile_size(v.shape, v.element_size())
    maps_buf = v.new_empty(2 * tile_images * H * tile_queries * N)
    # The branches are split before a tile is copied, because products of a part of the channels are slower.
    all_queries, all_keys = zip(*split_branches(q, k, branch_dims), strict=True)
    for images in _slices(B, tile_images):
        keys, values = _tile_of(all_keys, images), _merge_heads(v[images])  # (BH, N, d1 or d2), (BH, N, Dv)
        for rows in _slices(N, tile_queries):
            queries = _tile_of(all_queries, (images, slice(None), rows))  # (BH, R, d1 or d2)
            map1, map2 = _softmax_maps(queries, keys, scale, maps_buf)  # (BH, R, N)
            # D = A1 - lambda A2, in the memory of A1.
            map1.addcmul_(map2, _merge_heads(lam[images, :, rows]).to(v.dtype), value=-1)
            heads = torch.bmm(map1, values)  # (BH, R, Dv)
            if norm_weight is not None:
                heads = F.rms_norm(heads, norm_weight.shape, norm_weight, HEAD_NORM_EPS)
            _write(heads, out[images, :, rows])
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    branch_dims: BranchDims,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `operator.attend_backward`, whose docstring has the equations, and write it into `grads` of q, k, v."""
    B, H, N, _ = v.shape
    (grad_q, grad_k, grad_v), grad_lam = grads, empty_tokens_first(lam)
    tile_images, tile_queries = _tile_size(v.shape, v.element_size())
    maps_buf, grads_buf = v.new_empty(2, 2 * tile_images * H * tile_queries * N)
    all_queries, all_keys = zip(*split_branches(q, k, branch_dims), strict=True)
    for images in _slices(B, tile_images):
        keys, values = _tile_of(all_keys, images), _merge_heads(v[images])  # (BH, N, d1 or d2), (BH, N, Dv)
        for rows in _slices(N, tile_queries):
            queries = _tile_of(all_queries, (images, slice(None), rows))  # (BH, R, d1 or d2)
            maps = _softmax_maps(queries, keys, scale, maps_buf)  # (2, BH, R, N)
            scratch, grad_map = _view_buffer(grads_buf, maps.shape)  # (BH, R, N) each
            grad_out = _merge_heads(grad[images, :, rows])  # (BH, R, Dv)
            lams = _merge_heads(lam[images, :, rows]).to(v.dtype)  # (BH, R, 1)
            add = rows.start > 0  # the keys and values of an image receive gradients from each of its tiles

            # G = grad V^T, the gradient of D = A1 - lambda A2; dlambda = -rowsum(G A2).
            torch.bmm(grad_out, values.mT, out=grad_map)
            torch.mul(grad_map, maps[1], out=scratch)
            _write(scratch.sum(-1, keepdim=True, dtype=lam.dtype).neg_(), grad_lam[images, :, rows])
            # dV = D^T grad.
            torch.addcmul(maps[0], maps[1], lams, value=-1, out=scratch)
            _write(torch.bmm(scratch.mT, grad_out), grad_v[images], add)

            # Each map Ai becomes Ai (G - rowsum(G Ai)), the gradient of its logits. For branch 2 the factor -lambda is
            # still missing. It is applied to q2 and dq2 below, which are smaller than the map.
            for attention in maps:
                softmax_backward_out(grad_map, attention, -1, attention.dtype, grad_input=attention)
            (grad_q1, grad_k1), (grad_q2, grad_k2) = split_branches(
                grad_q[images, :, rows], grad_k[images], branch_dims
            )
            _write(_scaled_bmm(maps[0], keys[0], scale), grad_q1)
            _write(_scaled_bmm(maps[0].mT, queries[0], scale), grad_k1, add)
            _write(_scaled_bmm(maps[1], keys[1], -scale).mul_(lams), grad_q2)
            # In version 2 grad_k2 is grad_k1, so the gradient of branch 2 is always added to that of branch 1.
            tile_grad_k2 = _scaled_bmm(maps[1].mT, lams * queries[1], -scale)
            _write(tile_grad_k2, grad_k2, add or branch_dims is None)
    return grad_q, grad_k, grad_v, grad_lam
