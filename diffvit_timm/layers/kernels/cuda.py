"""Differential attention on a CUDA GPU, in Triton. Both softmaxes and their difference stay on the chip.

The kernels follow FlashAttention-2 (https://arxiv.org/abs/2307.08691), with two maps and one product with the values:
nothing of size N x N reaches the memory of the GPU. Up to WHOLE_ROW_KEYS keys, a program of the forward pass holds
whole rows of both maps and computes each product once, which is the arithmetic of plain attention and a second
exponential. With more keys, and in the backward pass, a program computes the maps block by block and twice: first for
their normalisers, then to use them. As in FlashAttention-2, one kernel computes the gradients of the queries (and of
lambda), and another one those of the keys and values.

Names, beside those of FlashAttention-2:

    B, H, N         images, heads, tokens; a program works on one head of one image, `head` counts all B H of them
    D1, D2, DV      widths of the two branches and of the values; *_PAD are the next powers of 2, which Triton needs
    K2_OFFSET       first channel of branch 2 in the keys, or 0 in version 2, where both branches have the same keys
    BLOCK_Q, BLOCK_K    queries and keys in a block
    stride_qb, stride_qh, stride_qn    strides of q over images, heads and tokens; its channels lie side by side
    map1, map2      A1 and A2 (P)
    lse1, lse2      log-sum-exp of the logits of a row (L); a map is exp(logits - lse)
    grad_map        G = grad V^T, the gradient of D = A1 - lambda A2 (dP)
    delta1, delta2  rowsum(A1 G) and rowsum(A2 G) (D)
    grad_logits1    A1 (G - delta1) (dS)

Logits and lse are in units of log 2, because exp2 is what a GPU computes: `scale_log2` is the softmax scale times
log2(e). Sums are in float32, and "ieee" keeps float32 products from being rounded to TF32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import HEAD_NORM_EPS, BranchDims, empty_tokens_first

__all__ = ["backward", "forward"]

# Up to this number of keys and this head width, 8 warps hold 32 whole rows of both maps, and a head, in registers
# (ptxas for sm_80 and sm_90: no spills).
WHOLE_ROW_KEYS, WHOLE_ROW_WIDTH = 256, 64
# Blocks of the forward kernel for more keys or wider heads, and of the gradient of the queries.
BLOCKS = dict(BLOCK_Q=64, BLOCK_K=64, num_warps=4)
KEY_GRADIENT_BLOCKS = dict(BLOCK_Q=32, BLOCK_K=64, num_warps=4)
LOG2_E = 1.4426950408889634


@triton.jit
def _load_rows(pointer, rows, stride, row_count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Load rows of a matrix (row_count, WIDTH) whose columns lie side by side as (rows, PADDED), with zeros outside."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < row_count) & (columns[None, :] < WIDTH)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(pointer, values, rows, stride, row_count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Store (rows, PADDED) as rows of a matrix (row_count, WIDTH), without what lies outside of it."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < row_count) & (columns[None, :] < WIDTH)
    tl.store(pointer + rows[:, None] * stride + columns[None, :], values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _logits(q, k, keys, N, scale_log2):
    """Compute the logits, (queries, keys), in units of log 2. They are -inf for keys beyond the last one."""
    return tl.where(keys[None, :] < N, tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2, float("-inf"))


@triton.jit
def _online_softmax(row_max, row_sum, logits):
    """Update the running maximum and sum of exponentials of each row with a block of logits (online softmax).

    Returns:
        The new maximum and sum, the exponentials of the block, and the factor that rescales older sums to the new
        maximum.
    """
    new_max = tl.maximum(row_max, tl.max(logits, 1))
    exps, rescale = tl.exp2(logits - new_max[:, None]), tl.exp2(row_max - new_max)
    return new_max, row_sum * rescale + tl.sum(exps, 1), exps, rescale


@triton.jit
def _softmax(logits):
    """Compute the softmax of whole rows."""
    exps = tl.exp2(logits - tl.max(logits, 1)[:, None])
    return exps / tl.sum(exps, 1)[:, None]


@triton.jit
def _logits_and_grad_map(
    q1, q2, grad, k, v, stride_kn, stride_vn, start, N, scale_log2, BLOCK_K: tl.constexpr,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr,
):  # fmt: skip
    """Load the block of keys that begins at `start`, and compute the logits of both branches and grad_map for it."""
    keys = start + tl.arange(0, BLOCK_K)
    k1 = _load_rows(k, keys, stride_kn, N, D1, D1_PAD)
    k2 = _load_rows(k + K2_OFFSET, keys, stride_kn, N, D2, D2_PAD)
    values = _load_rows(v, keys, stride_vn, N, DV, DV_PAD)
    grad_map = tl.dot(grad, tl.trans(values), input_precision="ieee")  # (BLOCK_Q, BLOCK_K)
    return k1, k2, _logits(q1, k1, keys, N, scale_log2), _logits(q2, k2, keys, N, scale_log2), grad_map


@triton.jit
def _head_and_first_row(N, BLOCK: tl.constexpr):
    """Return the head of this program, counted over all images, and the first of its BLOCK rows.

    The grid has one axis for both, because CUDA limits the length of the other axes.
    """
    blocks = tl.cdiv(N, BLOCK)
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK


@triton.jit
def _head_pointer(pointer, head, batch_stride, head_stride, H):
    """Return the address of the matrix of a head, counted over all images. The offset can exceed 32 bits."""
    return pointer + (head // H).to(tl.int64) * batch_stride + (head % H).to(tl.int64) * head_stride


@triton.jit
def _forward_kernel(
    q, k, v, lam, out, norm_weight,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_lb, stride_lh, stride_ln, stride_ob, stride_oh, stride_on,
    H, N, scale_log2, eps,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE_ROWS: tl.constexpr,
):  # fmt: skip
    """Compute the output of a block of queries of one head, with the norm of the head if there is a norm_weight."""
    head, first = _head_and_first_row(N, BLOCK_Q)
    q = _head_pointer(q, head, stride_qb, stride_qh, H)
    k = _head_pointer(k, head, stride_kb, stride_kh, H)
    v = _head_pointer(v, head, stride_vb, stride_vh, H)
    out = _head_pointer(out, head, stride_ob, stride_oh, H)
    lam = _head_pointer(lam, head, stride_lb, stride_lh, H)
    queries = first + tl.arange(0, BLOCK_Q)
    q1 = _load_rows(q, queries, stride_qn, N, D1, D1_PAD)  # (BLOCK_Q, D1_PAD)
    q2 = _load_rows(q + D1, queries, stride_qn, N, D2, D2_PAD)  # (BLOCK_Q, D2_PAD)
    lams = tl.load(lam + queries * stride_ln, mask=queries < N, other=0.0).to(tl.float32)[:, None]  # (BLOCK_Q, 1)
    if WHOLE_ROWS:
        # One block has all keys, so each softmax is complete at once.
        keys = tl.arange(0, BLOCK_K)
        map1 = _softmax(_logits(q1, _load_rows(k, keys, stride_kn, N, D1, D1_PAD), keys, N, scale_log2))
        map2 = _softmax(_logits(q2, _load_rows(k + K2_OFFSET, keys, stride_kn, N, D2, D2_PAD), keys, N, scale_log2))
        values = _load_rows(v, keys, stride_vn, N, DV, DV_PAD)
        acc = tl.dot((map1 - lams * map2).to(values.dtype), values, input_precision="ieee")  # (BLOCK_Q, DV_PAD)
    else:
        # Pass 1 over the keys: the log-sum-exp of each row of both maps.
        max1, max2 = tl.full([BLOCK_Q], float("-inf"), tl.float32), tl.full([BLOCK_Q], float("-inf"), tl.float32)
        sum1, sum2 = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q], tl.float32)
        for start in range(0, N, BLOCK_K):
            keys = start + tl.arange(0, BLOCK_K)
            logits1 = _logits(q1, _load_rows(k, keys, stride_kn, N, D1, D1_PAD), keys, N, scale_log2)
            logits2 = _logits(q2, _load_rows(k + K2_OFFSET, keys, stride_kn, N, D2, D2_PAD), keys, N, scale_log2)
            max1, sum1, _, _ = _online_softmax(max1, sum1, logits1)
            max2, sum2, _, _ = _online_softmax(max2, sum2, logits2)
        lse1, lse2 = max1 + tl.log2(sum1), max2 + tl.log2(sum2)
        # Pass 2 over the keys: the normalised maps, their difference, and its product with the values.
        acc = tl.zeros([BLOCK_Q, DV_PAD], tl.float32)
        for start in range(0, N, BLOCK_K):
            keys = start + tl.arange(0, BLOCK_K)
            logits1 = _logits(q1, _load_rows(k, keys, stride_kn, N, D1, D1_PAD), keys, N, scale_log2)
            map1 = tl.exp2(logits1 - lse1[:, None])
            logits2 = _logits(q2, _load_rows(k + K2_OFFSET, keys, stride_kn, N, D2, D2_PAD), keys, N, scale_log2)
            map2 = tl.exp2(logits2 - lse2[:, None])
            values = _load_rows(v, keys, stride_vn, N, DV, DV_PAD)
            acc += tl.dot((map1 - lams * map2).to(values.dtype), values, input_precision="ieee")
    if norm_weight is not None:
        # RMSNorm over the DV channels; the padding adds zeros to the sum of squares.
        columns = tl.arange(0, DV_PAD)
        weight = tl.load(norm_weight + columns, mask=columns < DV, other=0.0).to(tl.float32)
        acc = acc * tl.rsqrt(tl.sum(acc * acc, 1) / DV + eps)[:, None] * weight[None, :]
    _store_rows(out, acc, queries, stride_on, N, DV, DV_PAD)


@triton.jit
def _query_gradient_kernel(
    q, k, v, lam, grad, grad_q, grad_lam, row_stats,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_lb, stride_lh, stride_ln, stride_gb, stride_gh, stride_gn,
    stride_gqb, stride_gqh, stride_gqn, stride_glb, stride_glh, stride_gln,
    H, N, scale_log2, scale,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of q and lambda for a block of queries of one head.

    For the other gradient kernel, also store lse1, delta1, lse2 and delta2 of each query in row_stats, (B H, 4, N).
    """
    head, first = _head_and_first_row(N, BLOCK_Q)
    q = _head_pointer(q, head, stride_qb, stride_qh, H)
    k = _head_pointer(k, head, stride_kb, stride_kh, H)
    v = _head_pointer(v, head, stride_vb, stride_vh, H)
    grad = _head_pointer(grad, head, stride_gb, stride_gh, H)
    lam = _head_pointer(lam, head, stride_lb, stride_lh, H)
    grad_q = _head_pointer(grad_q, head, stride_gqb, stride_gqh, H)
    grad_lam = _head_pointer(grad_lam, head, stride_glb, stride_glh, H)
    row_stats += head.to(tl.int64) * 4 * N
    queries = first + tl.arange(0, BLOCK_Q)
    q1 = _load_rows(q, queries, stride_qn, N, D1, D1_PAD)  # (BLOCK_Q, D1_PAD)
    q2 = _load_rows(q + D1, queries, stride_qn, N, D2, D2_PAD)  # (BLOCK_Q, D2_PAD)
    grads = _load_rows(grad, queries, stride_gn, N, DV, DV_PAD)  # (BLOCK_Q, DV_PAD)
    lams = tl.load(lam + queries * stride_ln, mask=queries < N, other=0.0).to(tl.float32)  # (BLOCK_Q,)

    # Pass 1 over the keys: lse and delta of each row of both maps. FlashAttention-2 computes delta as rowsum(grad out),
    # but here the forward pass does not store the outputs of the single maps. So delta is summed online, without the
    # normaliser, like the sum of exponentials.
    max1, max2 = tl.full([BLOCK_Q], float("-inf"), tl.float32), tl.full([BLOCK_Q], float("-inf"), tl.float32)
    sum1, sum2 = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    delta1, delta2 = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    for start in range(0, N, BLOCK_K):
        k1, k2, logits1, logits2, grad_map = _logits_and_grad_map(
            q1, q2, grads, k, v, stride_kn, stride_vn, start, N, scale_log2,
            BLOCK_K, D1, D2, DV, K2_OFFSET, D1_PAD, D2_PAD, DV_PAD
        )  # fmt: skip
        max1, sum1, exps1, rescale1 = _online_softmax(max1, sum1, logits1)
        max2, sum2, exps2, rescale2 = _online_softmax(max2, sum2, logits2)
        delta1 = delta1 * rescale1 + tl.sum(exps1 * grad_map, 1)
        delta2 = delta2 * rescale2 + tl.sum(exps2 * grad_map, 1)
    lse1, lse2, delta1, delta2 = max1 + tl.log2(sum1), max2 + tl.log2(sum2), delta1 / sum1, delta2 / sum2

    # Pass 2 over the keys: dq1 = scale dS1 k1, and dq2 likewise with the factor -lambda, which is applied at the end.
    acc_q1, acc_q2 = tl.zeros([BLOCK_Q, D1_PAD], tl.float32), tl.zeros([BLOCK_Q, D2_PAD], tl.float32)
    for start in range(0, N, BLOCK_K):
        k1, k2, logits1, logits2, grad_map = _logits_and_grad_map(
            q1, q2, grads, k, v, stride_kn, stride_vn, start, N, scale_log2,
            BLOCK_K, D1, D2, DV, K2_OFFSET, D1_PAD, D2_PAD, DV_PAD
        )  # fmt: skip
        grad_logits1 = tl.exp2(logits1 - lse1[:, None]) * (grad_map - delta1[:, None])
        grad_logits2 = tl.exp2(logits2 - lse2[:, None]) * (grad_map - delta2[:, None])
        acc_q1 += tl.dot(grad_logits1.to(k1.dtype), k1, input_precision="ieee")
        acc_q2 += tl.dot(grad_logits2.to(k2.dtype), k2, input_precision="ieee")
    _store_rows(grad_q, acc_q1 * scale, queries, stride_gqn, N, D1, D1_PAD)
    _store_rows(grad_q + D1, acc_q2 * (-lams * scale)[:, None], queries, stride_gqn, N, D2, D2_PAD)

    inside = queries < N
    # dlambda = -rowsum(A2 G)
    tl.store(grad_lam + queries * stride_gln, (-delta2).to(grad_lam.dtype.element_ty), mask=inside)
    tl.store(row_stats + queries, lse1, mask=inside)
    tl.store(row_stats + N + queries, delta1, mask=inside)
    tl.store(row_stats + 2 * N + queries, lse2, mask=inside)
    tl.store(row_stats + 3 * N + queries, delta2, mask=inside)


@triton.jit
def _key_gradient_kernel(
    q, k, v, lam, grad, grad_k, grad_v, row_stats,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_lb, stride_lh, stride_ln, stride_gb, stride_gh, stride_gn,
    stride_gkb, stride_gkh, stride_gkn, stride_gvb, stride_gvh, stride_gvn,
    H, N, scale_log2, scale,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of k and v for a block of keys of one head, in a loop over all queries."""
    head, first = _head_and_first_row(N, BLOCK_K)
    q = _head_pointer(q, head, stride_qb, stride_qh, H)
    k = _head_pointer(k, head, stride_kb, stride_kh, H)
    v = _head_pointer(v, head, stride_vb, stride_vh, H)
    grad = _head_pointer(grad, head, stride_gb, stride_gh, H)
    lam = _head_pointer(lam, head, stride_lb, stride_lh, H)
    grad_k = _head_pointer(grad_k, head, stride_gkb, stride_gkh, H)
    grad_v = _head_pointer(grad_v, head, stride_gvb, stride_gvh, H)
    row_stats += head.to(tl.int64) * 4 * N
    keys = first + tl.arange(0, BLOCK_K)
    k1 = _load_rows(k, keys, stride_kn, N, D1, D1_PAD)  # (BLOCK_K, D1_PAD)
    k2 = _load_rows(k + K2_OFFSET, keys, stride_kn, N, D2, D2_PAD)  # (BLOCK_K, D2_PAD)
    values = _load_rows(v, keys, stride_vn, N, DV, DV_PAD)  # (BLOCK_K, DV_PAD)
    acc_k1, acc_k2 = tl.zeros([BLOCK_K, D1_PAD], tl.float32), tl.zeros([BLOCK_K, D2_PAD], tl.float32)
    acc_v = tl.zeros([BLOCK_K, DV_PAD], tl.float32)
    for start in range(0, N, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        inside = queries < N
        q1 = _load_rows(q, queries, stride_qn, N, D1, D1_PAD)  # (BLOCK_Q, D1_PAD)
        q2 = _load_rows(q + D1, queries, stride_qn, N, D2, D2_PAD)  # (BLOCK_Q, D2_PAD)
        grads = _load_rows(grad, queries, stride_gn, N, DV, DV_PAD)  # (BLOCK_Q, DV_PAD)
        # All (BLOCK_Q, 1). For a query beyond the last one, an lse of infinity makes both maps 0.
        lams = tl.load(lam + queries * stride_ln, mask=inside, other=0.0).to(tl.float32)[:, None]
        lse1 = tl.load(row_stats + queries, mask=inside, other=float("inf"))[:, None]
        delta1 = tl.load(row_stats + N + queries, mask=inside, other=0.0)[:, None]
        lse2 = tl.load(row_stats + 2 * N + queries, mask=inside, other=float("inf"))[:, None]
        delta2 = tl.load(row_stats + 3 * N + queries, mask=inside, other=0.0)[:, None]
        # The maps again, (BLOCK_Q, BLOCK_K), the second one times lambda. dV = D^T grad with D = A1 - lambda A2.
        map1 = tl.exp2(_logits(q1, k1, keys, N, scale_log2) - lse1)
        lam_map2 = lams * tl.exp2(_logits(q2, k2, keys, N, scale_log2) - lse2)
        grad_map = tl.dot(grads, tl.trans(values), input_precision="ieee")
        acc_v += tl.dot(tl.trans((map1 - lam_map2).to(grads.dtype)), grads, input_precision="ieee")
        # dk1 = scale dS1^T q1 and dk2 = scale dS2^T q2.
        grad_logits1 = (map1 * (grad_map - delta1)).to(q1.dtype)
        grad_logits2 = (-lam_map2 * (grad_map - delta2)).to(q2.dtype)
        acc_k1 += tl.dot(tl.trans(grad_logits1), q1, input_precision="ieee")
        if K2_OFFSET == 0:  # version 2: the two branches have the same keys, whose gradients add up
            acc_k1 += tl.dot(tl.trans(grad_logits2), q2, input_precision="ieee")
        else:
            acc_k2 += tl.dot(tl.trans(grad_logits2), q2, input_precision="ieee")
    _store_rows(grad_v, acc_v, keys, stride_gvn, N, DV, DV_PAD)
    _store_rows(grad_k, acc_k1 * scale, keys, stride_gkn, N, D1, D1_PAD)
    if K2_OFFSET > 0:
        _store_rows(grad_k + K2_OFFSET, acc_k2 * scale, keys, stride_gkn, N, D2, D2_PAD)


def _pad(width: int) -> int:
    """Round a width up to a power of 2, and at least to the 16 that a matrix product needs."""
    return max(16, triton.next_power_of_2(width))


def _width_constants(q: Tensor, v: Tensor, branch_dims: BranchDims) -> dict[str, int]:
    """Return the constants of the kernels that depend on the widths of the branches and of the values."""
    d1, d2 = branch_dims or (q.shape[-1] // 2, q.shape[-1] // 2)
    widths = dict(D1=d1, D2=d2, DV=v.shape[-1], K2_OFFSET=d1 if branch_dims else 0)
    return widths | dict(D1_PAD=_pad(d1), D2_PAD=_pad(d2), DV_PAD=_pad(v.shape[-1]))


def blocks_for_width(padded_width: int, blocks: dict[str, int] = BLOCKS) -> dict[str, int]:
    """Return the block sizes, with fewer loads ahead for wide heads.

    Triton's default of three stages takes more shared memory than the 99 KiB of Ampere's graphics cards.
    """
    return blocks if padded_width <= WHOLE_ROW_WIDTH else blocks | dict(num_stages=2)


def forward_blocks(N: int, padded_width: int) -> dict[str, int]:
    """Return the block sizes of the forward kernel, with all N keys in one block if their maps fit into registers."""
    keys = _pad(N)
    if keys <= WHOLE_ROW_KEYS and padded_width <= WHOLE_ROW_WIDTH:
        return dict(BLOCK_Q=min(32, keys), BLOCK_K=keys, WHOLE_ROWS=True, num_warps=8)
    return dict(WHOLE_ROWS=False, **blocks_for_width(padded_width))


def _strides(*tensors: Tensor) -> list[int]:
    """Return the strides of each tensor over images, heads and tokens."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _channels_side_by_side(*tensors: Tensor) -> list[Tensor]:
    """Copy the tensors whose channels do not lie side by side in memory. Those of a projection do."""
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
    """Compute `operator.attend` or, with norm_weight, `operator.attend_and_norm`."""
    B, H, N, _ = v.shape
    q, k, v = _channels_side_by_side(q, k, v)
    out, widths = empty_tokens_first(v), _width_constants(q, v, branch_dims)
    blocks = forward_blocks(N, widths["DV_PAD"])
    with torch.cuda.device_of(q):  # Triton launches kernels on the current device
        _forward_kernel[(B * H * triton.cdiv(N, blocks["BLOCK_Q"]),)](
            q, k, v, lam, out, norm_weight, *_strides(q, k, v, lam, out),
            H, N, scale * LOG2_E, HEAD_NORM_EPS, **widths, **blocks
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: BranchDims, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `operator.attend_backward`, whose docstring has the equations."""
    B, H, N, _ = v.shape
    grad, q, k, v = _channels_side_by_side(grad, q, k, v)
    grad_q, grad_k, grad_v, grad_lam = map(empty_tokens_first, (q, k, v, lam))
    row_stats = q.new_empty(B * H, 4, N, dtype=torch.float32)
    widths, strides = _width_constants(q, v, branch_dims), _strides(q, k, v, lam, grad)
    with torch.cuda.device_of(q):
        # The first kernel fills row_stats for the second one.
        _query_gradient_kernel[(B * H * triton.cdiv(N, BLOCKS["BLOCK_Q"]),)](
            q, k, v, lam, grad, grad_q, grad_lam, row_stats,
            *strides, *_strides(grad_q, grad_lam), H, N, scale * LOG2_E, scale, **widths,
            **blocks_for_width(widths["DV_PAD"])
        )  # fmt: skip
        _key_gradient_kernel[(B * H * triton.cdiv(N, KEY_GRADIENT_BLOCKS["BLOCK_K"]),)](
            q, k, v, lam, grad, grad_k, grad_v, row_stats,
            *strides, *_strides(grad_k, grad_v), H, N, scale * LOG2_E, scale, **widths,
            **blocks_for_width(widths["DV_PAD"], KEY_GRADIENT_BLOCKS)
        )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_lam
