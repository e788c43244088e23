"""Differential attention on a CUDA GPU, in Triton: both softmaxes on chip, subtracted, and one product with the values.

Up to ROW_KEYS keys a program holds whole rows of both maps, and computes each product once: the arithmetic of plain
attention and a second exponential. Beyond, and in the backward pass, it makes the maps twice, block by block: for their
normalisers, and to use them. The gradient of the queries and of lambda is one kernel, that of the keys and values
another, as in flash attention (https://arxiv.org/abs/2307.08691); nothing of N x N reaches memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import HEAD_NORM_EPS, BranchDims, empty_tokens_first

__all__ = ["backward", "forward"]

# Two maps of 32 whole rows, and a head, that 8 warps hold in registers (ptxas for sm_80 and sm_90: no spills).
ROW_KEYS, ROW_WIDTH = 256, 64
# Elsewhere, at a time.
BLOCKS = dict(QUERIES=64, KEYS=64, num_warps=4)
KEY_GRADIENT_BLOCKS = dict(QUERIES=32, KEYS=64, num_warps=4)
LOG2_E = 1.4426950408889634  # the kernels take powers of 2


@triton.jit
def _load(pointer, rows, stride, row_count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """(rows, PADDED) of a matrix (row_count, WIDTH) whose columns lie side by side, zeros beyond."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < row_count) & (columns[None, :] < WIDTH)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(pointer, values, rows, stride, row_count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < row_count) & (columns[None, :] < WIDTH)
    tl.store(pointer + rows[:, None] * stride + columns[None, :], values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _logits(q, k, keys, N, scale):
    """(queries, keys), in units of log 2, -inf where there is no key."""
    return tl.where(keys[None, :] < N, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))


@triton.jit
def _update(largest, total, logits):
    """The running maximum and sum of powers of each row; the new powers, and the factor on sums of the old ones."""
    new = tl.maximum(largest, tl.max(logits, 1))
    powers, old = tl.exp2(logits - new[:, None]), tl.exp2(largest - new)
    return new, total * old + tl.sum(powers, 1), powers, old


@triton.jit
def _softmax(logits):
    powers = tl.exp2(logits - tl.max(logits, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def _block(
    q1, q2, grads, k, v, k_row, v_row, start, N, scale, KEYS: tl.constexpr,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2: tl.constexpr,
    P1: tl.constexpr, P2: tl.constexpr, PV: tl.constexpr,
):  # fmt: skip
    """The keys of both branches from `start` on, the logits of both, and the gradient that reaches the maps."""
    keys = start + tl.arange(0, KEYS)
    k1, k2 = _load(k, keys, k_row, N, D1, P1), _load(k + K2, keys, k_row, N, D2, P2)
    into_map = tl.dot(grads, tl.trans(_load(v, keys, v_row, N, DV, PV)), input_precision="ieee")
    return k1, k2, _logits(q1, k1, keys, N, scale), _logits(q2, k2, keys, N, scale), into_map


@triton.jit
def _place(N, STEP: tl.constexpr):
    """Which head of all images a program is for, and where its STEP of N rows begin: one axis, the others are short."""
    steps = tl.cdiv(N, STEP)
    return tl.program_id(0) // steps, tl.program_id(0) % steps * STEP


@triton.jit
def _head(pointer, index, batch_stride, head_stride, H):
    """Where the matrix of head `index` of all images begins."""
    return pointer + (index // H).to(tl.int64) * batch_stride + (index % H).to(tl.int64) * head_stride


@triton.jit
def _forward_kernel(
    q, k, v, lam, out, norm_weight,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, l_batch, l_head, l_row,
    o_batch, o_head, o_row,
    H, N, scale, eps,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2: tl.constexpr,
    P1: tl.constexpr, P2: tl.constexpr, PV: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WHOLE_ROWS: tl.constexpr,
):  # fmt: skip
    index, first = _place(N, QUERIES)
    q, k, v = (
        _head(q, index, q_batch, q_head, H),
        _head(k, index, k_batch, k_head, H),
        _head(v, index, v_batch, v_head, H),
    )
    out, lam = _head(out, index, o_batch, o_head, H), _head(lam, index, l_batch, l_head, H)
    queries = first + tl.arange(0, QUERIES)
    q1, q2 = _load(q, queries, q_row, N, D1, P1), _load(q + D1, queries, q_row, N, D2, P2)
    weight = tl.load(lam + queries * l_row, mask=queries < N, other=0.0).to(tl.float32)[:, None]
    if WHOLE_ROWS:
        keys = tl.arange(0, KEYS)
        map1 = _softmax(_logits(q1, _load(k, keys, k_row, N, D1, P1), keys, N, scale))
        map2 = _softmax(_logits(q2, _load(k + K2, keys, k_row, N, D2, P2), keys, N, scale))
        values = _load(v, keys, v_row, N, DV, PV)
        total = tl.dot((map1 - weight * map2).to(values.dtype), values, input_precision="ieee")
    else:
        max1, max2 = tl.full([QUERIES], float("-inf"), tl.float32), tl.full([QUERIES], float("-inf"), tl.float32)
        sum1, sum2 = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
        for start in range(0, N, KEYS):
            keys = start + tl.arange(0, KEYS)
            logits1 = _logits(q1, _load(k, keys, k_row, N, D1, P1), keys, N, scale)
            logits2 = _logits(q2, _load(k + K2, keys, k_row, N, D2, P2), keys, N, scale)
            max1, sum1, _, _ = _update(max1, sum1, logits1)
            max2, sum2, _, _ = _update(max2, sum2, logits2)
        norm1, norm2 = max1 + tl.log2(sum1), max2 + tl.log2(sum2)
        total = tl.zeros([QUERIES, PV], tl.float32)
        for start in range(0, N, KEYS):
            keys = start + tl.arange(0, KEYS)
            map1 = tl.exp2(_logits(q1, _load(k, keys, k_row, N, D1, P1), keys, N, scale) - norm1[:, None])
            map2 = tl.exp2(_logits(q2, _load(k + K2, keys, k_row, N, D2, P2), keys, N, scale) - norm2[:, None])
            values = _load(v, keys, v_row, N, DV, PV)
            total += tl.dot((map1 - weight * map2).to(values.dtype), values, input_precision="ieee")
    if norm_weight is not None:
        columns = tl.arange(0, PV)
        gain = tl.load(norm_weight + columns, mask=columns < DV, other=0.0).to(tl.float32)
        total = total * tl.rsqrt(tl.sum(total * total, 1) / DV + eps)[:, None] * gain[None, :]
    _store(out, total, queries, o_row, N, DV, PV)


@triton.jit
def _query_gradient_kernel(
    q, k, v, lam, grad, grad_q, grad_lam, rows,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, l_batch, l_head, l_row,
    g_batch, g_head, g_row, gq_batch, gq_head, gq_row, gl_batch, gl_head, gl_row,
    H, N, scale, chain,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2: tl.constexpr,
    P1: tl.constexpr, P2: tl.constexpr, PV: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of q and lambda; and for the other kernel `rows`, (B H, 4, N): of each map its normaliser, and the
    mean under it of the gradient that reaches it."""
    index, first = _place(N, QUERIES)
    q, k, v = (
        _head(q, index, q_batch, q_head, H),
        _head(k, index, k_batch, k_head, H),
        _head(v, index, v_batch, v_head, H),
    )
    grad, lam = _head(grad, index, g_batch, g_head, H), _head(lam, index, l_batch, l_head, H)
    grad_q, grad_lam = _head(grad_q, index, gq_batch, gq_head, H), _head(grad_lam, index, gl_batch, gl_head, H)
    rows += index.to(tl.int64) * 4 * N
    queries = first + tl.arange(0, QUERIES)
    q1, q2 = _load(q, queries, q_row, N, D1, P1), _load(q + D1, queries, q_row, N, D2, P2)
    grads = _load(grad, queries, g_row, N, DV, PV)
    weight = tl.load(lam + queries * l_row, mask=queries < N, other=0.0).to(tl.float32)

    max1, max2 = tl.full([QUERIES], float("-inf"), tl.float32), tl.full([QUERIES], float("-inf"), tl.float32)
    sum1, sum2 = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    mean1, mean2 = tl.zeros([QUERIES], tl.float32), tl.zeros([QUERIES], tl.float32)
    for start in range(0, N, KEYS):
        k1, k2, logits1, logits2, into_map = _block(
            q1, q2, grads, k, v, k_row, v_row, start, N, scale, KEYS, D1, D2, DV, K2, P1, P2, PV
        )
        max1, sum1, powers1, old1 = _update(max1, sum1, logits1)
        max2, sum2, powers2, old2 = _update(max2, sum2, logits2)
        mean1, mean2 = mean1 * old1 + tl.sum(powers1 * into_map, 1), mean2 * old2 + tl.sum(powers2 * into_map, 1)
    norm1, norm2, mean1, mean2 = max1 + tl.log2(sum1), max2 + tl.log2(sum2), mean1 / sum1, mean2 / sum2
    total1, total2 = tl.zeros([QUERIES, P1], tl.float32), tl.zeros([QUERIES, P2], tl.float32)
    for start in range(0, N, KEYS):
        k1, k2, logits1, logits2, into_map = _block(
            q1, q2, grads, k, v, k_row, v_row, start, N, scale, KEYS, D1, D2, DV, K2, P1, P2, PV
        )
        slope1 = tl.exp2(logits1 - norm1[:, None]) * (into_map - mean1[:, None])
        slope2 = tl.exp2(logits2 - norm2[:, None]) * (into_map - mean2[:, None])
        total1 += tl.dot(slope1.to(k1.dtype), k1, input_precision="ieee")
        total2 += tl.dot(slope2.to(k2.dtype), k2, input_precision="ieee")
    _store(grad_q, total1 * chain, queries, gq_row, N, D1, P1)
    _store(grad_q + D1, total2 * (-weight * chain)[:, None], queries, gq_row, N, D2, P2)

    inside = queries < N
    tl.store(grad_lam + queries * gl_row, (-mean2).to(grad_lam.dtype.element_ty), mask=inside)
    tl.store(rows + queries, norm1, mask=inside)
    tl.store(rows + N + queries, mean1, mask=inside)
    tl.store(rows + 2 * N + queries, norm2, mask=inside)
    tl.store(rows + 3 * N + queries, mean2, mask=inside)


@triton.jit
def _key_gradient_kernel(
    q, k, v, lam, grad, grad_k, grad_v, rows,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, l_batch, l_head, l_row,
    g_batch, g_head, g_row, gk_batch, gk_head, gk_row, gv_batch, gv_head, gv_row,
    H, N, scale, chain,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2: tl.constexpr,
    P1: tl.constexpr, P2: tl.constexpr, PV: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of k and v, for a block of keys over all queries."""
    index, first = _place(N, KEYS)
    q, k, v = (
        _head(q, index, q_batch, q_head, H),
        _head(k, index, k_batch, k_head, H),
        _head(v, index, v_batch, v_head, H),
    )
    grad, lam = _head(grad, index, g_batch, g_head, H), _head(lam, index, l_batch, l_head, H)
    grad_k, grad_v = _head(grad_k, index, gk_batch, gk_head, H), _head(grad_v, index, gv_batch, gv_head, H)
    rows += index.to(tl.int64) * 4 * N
    keys = first + tl.arange(0, KEYS)
    k1, k2 = _load(k, keys, k_row, N, D1, P1), _load(k + K2, keys, k_row, N, D2, P2)
    values = _load(v, keys, v_row, N, DV, PV)
    total1, total2 = tl.zeros([KEYS, P1], tl.float32), tl.zeros([KEYS, P2], tl.float32)
    total_v = tl.zeros([KEYS, PV], tl.float32)
    for start in range(0, N, QUERIES):
        queries = start + tl.arange(0, QUERIES)
        inside = queries < N
        q1, q2 = _load(q, queries, q_row, N, D1, P1), _load(q + D1, queries, q_row, N, D2, P2)
        grads = _load(grad, queries, g_row, N, DV, PV)
        weight = tl.load(lam + queries * l_row, mask=inside, other=0.0).to(tl.float32)[:, None]
        # a query that is not there: its normaliser makes its maps 0
        norm1 = tl.load(rows + queries, mask=inside, other=float("inf"))[:, None]
        mean1 = tl.load(rows + N + queries, mask=inside, other=0.0)[:, None]
        norm2 = tl.load(rows + 2 * N + queries, mask=inside, other=float("inf"))[:, None]
        mean2 = tl.load(rows + 3 * N + queries, mask=inside, other=0.0)[:, None]
        map1 = tl.exp2(_logits(q1, k1, keys, N, scale) - norm1)
        map2 = weight * tl.exp2(_logits(q2, k2, keys, N, scale) - norm2)
        into_map = tl.dot(grads, tl.trans(values), input_precision="ieee")
        total_v += tl.dot(tl.trans((map1 - map2).to(grads.dtype)), grads, input_precision="ieee")
        slope1 = (map1 * (into_map - mean1)).to(q1.dtype)
        slope2 = (-map2 * (into_map - mean2)).to(q2.dtype)
        total1 += tl.dot(tl.trans(slope1), q1, input_precision="ieee")
        if K2 == 0:  # version 2: one key for both branches
            total1 += tl.dot(tl.trans(slope2), q2, input_precision="ieee")
        else:
            total2 += tl.dot(tl.trans(slope2), q2, input_precision="ieee")
    _store(grad_v, total_v, keys, gv_row, N, DV, PV)
    _store(grad_k, total1 * chain, keys, gk_row, N, D1, P1)
    if K2 > 0:
        _store(grad_k + K2, total2 * chain, keys, gk_row, N, D2, P2)


def _power_of_2(width: int) -> int:
    """The next one, and at least the 16 that a matrix product needs."""
    return max(16, triton.next_power_of_2(width))


def _widths(q: Tensor, v: Tensor, branch_dims: BranchDims) -> dict[str, int]:
    """The constants of the kernels: the widths of the branches and of v, where k2 begins, and the padded widths."""
    d1, d2 = branch_dims or (q.shape[-1] // 2, q.shape[-1] // 2)
    widths = dict(D1=d1, D2=d2, DV=v.shape[-1], K2=d1 if branch_dims else 0)
    return widths | dict(P1=_power_of_2(d1), P2=_power_of_2(d2), PV=_power_of_2(v.shape[-1]))


def blocks(padded_width: int, tile: dict[str, int] = BLOCKS) -> dict[str, int]:
    """The tile, with fewer loads ahead for wide heads: Triton's default of three takes more shared memory than Ampere's
    GPUs for graphics have (99 KiB)."""
    return tile if padded_width <= ROW_WIDTH else tile | dict(num_stages=2)


def forward_tile(N: int, padded_width: int) -> dict[str, int]:
    """All of N keys a program where their maps fit its registers, or else block by block."""
    keys = _power_of_2(N)
    if keys <= ROW_KEYS and padded_width <= ROW_WIDTH:
        return dict(QUERIES=min(32, keys), KEYS=keys, WHOLE_ROWS=True, num_warps=8)
    return dict(WHOLE_ROWS=False, **blocks(padded_width))


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _rows_together(*tensors: Tensor) -> list[Tensor]:
    """The tensors with the channels of a token side by side, as a projection leaves them."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]


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
    q, k, v = _rows_together(q, k, v)
    out, widths = empty_tokens_first(v), _widths(q, v, branch_dims)
    tile = forward_tile(N, widths["PV"])
    with torch.cuda.device_of(q):  # Triton launches on the current one
        _forward_kernel[(B * H * triton.cdiv(N, tile["QUERIES"]),)](
            q, k, v, lam, out, norm_weight, *_strides(q, k, v, lam, out),
            H, N, scale * LOG2_E, HEAD_NORM_EPS, **widths, **tile
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: BranchDims, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `operator.attend_backward`."""
    B, H, N, _ = v.shape
    grad, q, k, v = _rows_together(grad, q, k, v)
    grad_q, grad_k, grad_v, grad_lam = map(empty_tokens_first, (q, k, v, lam))
    rows = q.new_empty(B * H, 4, N, dtype=torch.float32)
    widths, strides = _widths(q, v, branch_dims), _strides(q, k, v, lam, grad)
    with torch.cuda.device_of(q):
        _query_gradient_kernel[(B * H * triton.cdiv(N, BLOCKS["QUERIES"]),)](
            q, k, v, lam, grad, grad_q, grad_lam, rows,
            *strides, *_strides(grad_q, grad_lam), H, N, scale * LOG2_E, scale, **widths, **blocks(widths["PV"])
        )  # fmt: skip
        _key_gradient_kernel[(B * H * triton.cdiv(N, KEY_GRADIENT_BLOCKS["KEYS"]),)](
            q, k, v, lam, grad, grad_k, grad_v, rows,
            *strides, *_strides(grad_k, grad_v), H, N, scale * LOG2_E, scale, **widths,
            **blocks(widths["PV"], KEY_GRADIENT_BLOCKS)
        )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_lam
