"""The Triton kernels of differential attention. Both softmaxes and their difference stay on the chip.

The kernels follow FlashAttention-2 (https://arxiv.org/abs/2307.08691), with two maps and two accumulators: a program
of the forward pass reads the keys and values once, block by block, and nothing of size N x N reaches the memory of the
GPU. The forward pass keeps the log-sum-exp of each row of both maps and the output of branch 2. With these the
gradients need no further statistics: one kernel computes those of the queries and of lambda, and another one those of
the keys and values, each in one pass.

Names, beside those of FlashAttention-2:

    B, H, N         images, heads, tokens; a program works on one head of one image, `head` counts all B H of them
    D1, D2, DV      widths of the two branches and of the values; *_PAD are the next powers of 2, which Triton needs
    K2_OFFSET       first channel of branch 2 in the keys, or 0 in version 2, where both branches have the same keys
    BLOCK_Q, BLOCK_K    queries and keys in a block
    TAIL            whether a block can have rows beyond the last token; only the last block of a loop can
    stride_qb, stride_qh, stride_qn    strides of q over images, heads and tokens; its channels lie side by side
    map1, map2      A1 and A2 (P)
    lse1, lse2      log-sum-exp of the logits of a row (L); a map is exp(logits - lse)
    grad_map        G = grad V^T, the gradient of D = A1 - lambda A2 (dP)
    delta1, delta2  rowsum(A1 G) and rowsum(A2 G) (D)
    grad_logits1    A1 (G - delta1) (dS)

The lse are in units of log 2, because exp2 is what a GPU computes: `scale_log2` is the softmax scale times log2(e), and
must be positive. Sums are in float32, and "ieee" keeps float32 products from being rounded to TF32.
"""

import triton
import triton.language as tl

__all__ = ["forward_kernel", "key_gradient_kernel", "query_gradient_kernel"]

# Arguments whose values do not matter to the compiler, so that it does not compile a kernel again for other values.
RUNTIME_VALUES = ("H", "N", "stride_lb", "stride_lh", "stride_ln")


@triton.jit
def _load_rows(pointer, rows, stride, row_count, WIDTH: tl.constexpr, PADDED: tl.constexpr, TAIL: tl.constexpr):
    """Load rows of a matrix (row_count, WIDTH) whose columns lie side by side as (rows, PADDED), with zeros outside."""
    columns = tl.arange(0, PADDED)
    pointers = pointer + rows[:, None] * stride + columns[None, :]
    if TAIL:
        return tl.load(pointers, mask=(rows[:, None] < row_count) & (columns[None, :] < WIDTH), other=0.0)
    if WIDTH < PADDED:
        return tl.load(pointers, mask=columns[None, :] < WIDTH, other=0.0)
    return tl.load(pointers)


@triton.jit
def _store_rows(pointer, values, rows, stride, row_count, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Store (rows, PADDED) as rows of a matrix (row_count, WIDTH), without what lies outside of it."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < row_count) & (columns[None, :] < WIDTH)
    tl.store(
        pointer + rows[:, None] * stride + columns[None, :],
        values.to(pointer.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def _head_and_first_row(N, BLOCK: tl.constexpr):
    """Return the head of this program, counted over all images, and the first of its BLOCK rows.

    The grid has one axis for both, because CUDA limits the length of the other axes.
    """
    blocks = tl.cdiv(N, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK


@triton.jit
def _head_pointer(pointer, head, batch_stride, head_stride, H):
    """Return the address of the matrix of a head, counted over all images. The offset can exceed 32 bits."""
    return pointer + head // H * batch_stride + head % H * head_stride


@triton.jit
def _tokens_first_pointer(pointer, head, H, N, WIDTH: tl.constexpr):
    """Return the address of the matrix of a head in a contiguous tensor (B, N, H, WIDTH). Its row stride is H WIDTH."""
    return pointer + head // H * N * H * WIDTH + head % H * WIDTH


@triton.jit
def _logits(q, k, keys, N, TAIL: tl.constexpr):
    """Compute q k^T, (queries, keys), without the softmax scale. They are -inf for keys beyond the last one."""
    logits = tl.dot(q, tl.trans(k), input_precision="ieee")
    return tl.where(keys[None, :] < N, logits, float("-inf")) if TAIL else logits


@triton.jit
def _attend_to_block(acc, row_max, row_sum, logits, values, scale_log2):
    """Add a block of keys and values to the output of one branch (online softmax).

    Returns:
        The new output, not yet normalised; the maximum of the logits of each row, in units of log 2; and the sum of
        the exponentials of each row.
    """
    new_max = tl.maximum(row_max, tl.max(logits, 1) * scale_log2)
    exps = tl.exp2(tl.fma(logits, scale_log2, -new_max[:, None]))
    rescale = tl.exp2(row_max - new_max)
    acc = tl.dot(exps.to(values.dtype), values, acc * rescale[:, None], input_precision="ieee")
    return acc, new_max, row_sum * rescale + tl.sum(exps, 1)


@triton.jit
def _attend_to_keys(
    acc1, max1, sum1, acc2, max2, sum2, q1, q2, k, v, stride_kn, stride_vn, start, N, scale_log2,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_K: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Add the block of keys that begins at `start` to the outputs of both branches."""
    keys = start + tl.arange(0, BLOCK_K)
    k1 = _load_rows(k, keys, stride_kn, N, D1, D1_PAD, TAIL)
    k2 = k1 if K2_OFFSET == 0 else _load_rows(k + K2_OFFSET, keys, stride_kn, N, D2, D2_PAD, TAIL)
    values = _load_rows(v, keys, stride_vn, N, DV, DV_PAD, TAIL)
    # The logits of both branches first: the products of branch 2 can run while branch 1 takes its exponentials.
    logits1, logits2 = _logits(q1, k1, keys, N, TAIL), _logits(q2, k2, keys, N, TAIL)
    acc1, max1, sum1 = _attend_to_block(acc1, max1, sum1, logits1, values, scale_log2)
    acc2, max2, sum2 = _attend_to_block(acc2, max2, sum2, logits2, values, scale_log2)
    return acc1, max1, sum1, acc2, max2, sum2


@triton.jit(do_not_specialize=RUNTIME_VALUES)
def forward_kernel(
    q, k, v, lam, norm_weight, out, out2, lse,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_lb, stride_lh, stride_ln,
    H, N, scale_log2, eps,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute the output of a block of queries of one head, with the norm of the head if there is a norm_weight.

    For the backward pass, also store the output of branch 2 in out2, like out, and both lse in (B H, 2, N); neither if
    out2 is None.
    """
    head, first = _head_and_first_row(N, BLOCK_Q)
    q = _head_pointer(q, head, stride_qb, stride_qh, H)
    k = _head_pointer(k, head, stride_kb, stride_kh, H)
    v = _head_pointer(v, head, stride_vb, stride_vh, H)
    lam = _head_pointer(lam, head, stride_lb, stride_lh, H)
    queries = first + tl.arange(0, BLOCK_Q)
    q1 = _load_rows(q, queries, stride_qn, N, D1, D1_PAD, True)  # (BLOCK_Q, D1_PAD)
    q2 = _load_rows(q + D1, queries, stride_qn, N, D2, D2_PAD, True)  # (BLOCK_Q, D2_PAD)
    max1, max2 = tl.full([BLOCK_Q], float("-inf"), tl.float32), tl.full([BLOCK_Q], float("-inf"), tl.float32)
    sum1, sum2 = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    acc1, acc2 = tl.zeros([BLOCK_Q, DV_PAD], tl.float32), tl.zeros([BLOCK_Q, DV_PAD], tl.float32)
    tail = (N - 1) // BLOCK_K * BLOCK_K
    for start in range(0, tail, BLOCK_K):
        acc1, max1, sum1, acc2, max2, sum2 = _attend_to_keys(
            acc1, max1, sum1, acc2, max2, sum2, q1, q2, k, v, stride_kn, stride_vn, start, N, scale_log2,
            D1, D2, DV, K2_OFFSET, D1_PAD, D2_PAD, DV_PAD, BLOCK_K, False
        )  # fmt: skip
    acc1, max1, sum1, acc2, max2, sum2 = _attend_to_keys(
        acc1, max1, sum1, acc2, max2, sum2, q1, q2, k, v, stride_kn, stride_vn, tail, N, scale_log2,
        D1, D2, DV, K2_OFFSET, D1_PAD, D2_PAD, DV_PAD, BLOCK_K, True
    )  # fmt: skip
    lams = tl.load(lam + queries * stride_ln, mask=queries < N, other=0.0)  # (BLOCK_Q,)
    acc2 = acc2 * (1 / sum2)[:, None]
    acc = acc1 * (1 / sum1)[:, None] - acc2 * lams[:, None]
    if norm_weight is not None:
        # RMSNorm over the DV channels; the padding adds zeros to the sum of squares.
        columns = tl.arange(0, DV_PAD)
        weight = tl.load(norm_weight + columns, mask=columns < DV, other=0.0).to(tl.float32)
        acc = acc * tl.rsqrt(tl.sum(acc * acc, 1) / DV + eps)[:, None] * weight[None, :]
    _store_rows(_tokens_first_pointer(out, head, H, N, DV), acc, queries, H * DV, N, DV, DV_PAD)
    if out2 is not None:
        _store_rows(_tokens_first_pointer(out2, head, H, N, DV), acc2, queries, H * DV, N, DV, DV_PAD)
        lse += head * 2 * N
        tl.store(lse + queries, max1 + tl.log2(sum1), mask=queries < N)
        tl.store(lse + N + queries, max2 + tl.log2(sum2), mask=queries < N)


@triton.jit
def _query_gradient_of_keys(
    acc_q1, acc_q2, q1, q2, grads, lse1, lse2, delta1, delta2, k, v, stride_kn, stride_vn, start, N, scale_log2,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_K: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Add the block of keys that begins at `start` to dS1 k1 and to A2 (G - delta2) k2."""
    keys = start + tl.arange(0, BLOCK_K)
    k1 = _load_rows(k, keys, stride_kn, N, D1, D1_PAD, TAIL)
    k2 = k1 if K2_OFFSET == 0 else _load_rows(k + K2_OFFSET, keys, stride_kn, N, D2, D2_PAD, TAIL)
    values = _load_rows(v, keys, stride_vn, N, DV, DV_PAD, TAIL)
    grad_map = tl.dot(grads, tl.trans(values), input_precision="ieee")  # (BLOCK_Q, BLOCK_K)
    map1 = tl.exp2(tl.fma(_logits(q1, k1, keys, N, TAIL), scale_log2, -lse1[:, None]))
    grad_logits1 = map1 * (grad_map - delta1[:, None])
    acc_q1 = tl.dot(grad_logits1.to(k1.dtype), k1, acc_q1, input_precision="ieee")
    map2 = tl.exp2(tl.fma(_logits(q2, k2, keys, N, TAIL), scale_log2, -lse2[:, None]))
    grad_logits2 = map2 * (grad_map - delta2[:, None])
    acc_q2 = tl.dot(grad_logits2.to(k2.dtype), k2, acc_q2, input_precision="ieee")
    return acc_q1, acc_q2


@triton.jit(do_not_specialize=RUNTIME_VALUES)
def query_gradient_kernel(
    q, k, v, lam, out, out2, lse, grad, grad_q, grad_lam, delta,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_lb, stride_lh, stride_ln, stride_gb, stride_gh, stride_gn, stride_gqb, stride_gqn,
    H, N, scale_log2, scale,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of q and lambda for a block of queries of one head.

    For the other gradient kernel, also store delta1 and delta2 of each query in `delta`, (B H, 2, N).
    """
    head, first = _head_and_first_row(N, BLOCK_Q)
    q = _head_pointer(q, head, stride_qb, stride_qh, H)
    k = _head_pointer(k, head, stride_kb, stride_kh, H)
    v = _head_pointer(v, head, stride_vb, stride_vh, H)
    grad = _head_pointer(grad, head, stride_gb, stride_gh, H)
    lam = _head_pointer(lam, head, stride_lb, stride_lh, H)
    queries = first + tl.arange(0, BLOCK_Q)
    inside = queries < N
    q1 = _load_rows(q, queries, stride_qn, N, D1, D1_PAD, True)  # (BLOCK_Q, D1_PAD)
    q2 = _load_rows(q + D1, queries, stride_qn, N, D2, D2_PAD, True)  # (BLOCK_Q, D2_PAD)
    grads = _load_rows(grad, queries, stride_gn, N, DV, DV_PAD, True)  # (BLOCK_Q, DV_PAD)
    outs = _load_rows(_tokens_first_pointer(out, head, H, N, DV), queries, H * DV, N, DV, DV_PAD, True)
    outs2 = _load_rows(_tokens_first_pointer(out2, head, H, N, DV), queries, H * DV, N, DV, DV_PAD, True)
    lams = tl.load(lam + queries * stride_ln, mask=inside, other=0.0)  # (BLOCK_Q,)
    lse += head * 2 * N
    lse1 = tl.load(lse + queries, mask=inside, other=0.0)
    lse2 = tl.load(lse + N + queries, mask=inside, other=0.0)
    # rowsum(A G) = rowsum(grad (A v)), and the output of branch 1 is out + lambda out2. dlambda = -rowsum(A2 G).
    delta2 = tl.sum(grads.to(tl.float32) * outs2.to(tl.float32), 1)
    delta1 = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1) + lams * delta2
    tl.store(_tokens_first_pointer(grad_lam, head, H, N, 1) + queries * H, -delta2, mask=inside)
    delta += head * 2 * N
    tl.store(delta + queries, delta1, mask=inside)
    tl.store(delta + N + queries, delta2, mask=inside)
    # dq1 = scale dS1 k1, and dq2 likewise with the factor -lambda, which is applied at the end.
    acc_q1, acc_q2 = tl.zeros([BLOCK_Q, D1_PAD], tl.float32), tl.zeros([BLOCK_Q, D2_PAD], tl.float32)
    tail = (N - 1) // BLOCK_K * BLOCK_K
    for start in range(0, tail, BLOCK_K):
        acc_q1, acc_q2 = _query_gradient_of_keys(
            acc_q1, acc_q2, q1, q2, grads, lse1, lse2, delta1, delta2, k, v, stride_kn, stride_vn, start, N,
            scale_log2, D1, D2, DV, K2_OFFSET, D1_PAD, D2_PAD, DV_PAD, BLOCK_K, False
        )  # fmt: skip
    acc_q1, acc_q2 = _query_gradient_of_keys(
        acc_q1, acc_q2, q1, q2, grads, lse1, lse2, delta1, delta2, k, v, stride_kn, stride_vn, tail, N,
        scale_log2, D1, D2, DV, K2_OFFSET, D1_PAD, D2_PAD, DV_PAD, BLOCK_K, True
    )  # fmt: skip
    grad_q = _head_pointer(grad_q, head, stride_gqb, D1 + D2, H)
    _store_rows(grad_q, acc_q1 * scale, queries, stride_gqn, N, D1, D1_PAD)
    _store_rows(grad_q + D1, acc_q2 * (-lams * scale)[:, None], queries, stride_gqn, N, D2, D2_PAD)


@triton.jit
def _key_gradient_of_queries(
    acc_k1, acc_k2, acc_v, k1, k2, values, q, grad, lam, lse, delta, stride_qn, stride_gn, stride_ln, start, N,
    scale_log2,
    D1: tl.constexpr, D2: tl.constexpr, DV: tl.constexpr, K2_OFFSET: tl.constexpr,
    D1_PAD: tl.constexpr, D2_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Add the block of queries that begins at `start` to dS1^T q1, to dS2^T q2 and to D^T grad.

    The maps are computed transposed, (BLOCK_K, BLOCK_Q), as the products that follow need them.
    """
    queries = start + tl.arange(0, BLOCK_Q)
    q1 = _load_rows(q, queries, stride_qn, N, D1, D1_PAD, TAIL)  # (BLOCK_Q, D1_PAD)
    q2 = _load_rows(q + D1, queries, stride_qn, N, D2, D2_PAD, TAIL)  # (BLOCK_Q, D2_PAD)
    grads = _load_rows(grad, queries, stride_gn, N, DV, DV_PAD, TAIL)  # (BLOCK_Q, DV_PAD)
    if TAIL:
        # For a query beyond the last one, an lse of infinity makes both maps 0.
        inside = queries < N
        lams = tl.load(lam + queries * stride_ln, mask=inside, other=0.0)
        lse1 = tl.load(lse + queries, mask=inside, other=float("inf"))
        lse2 = tl.load(lse + N + queries, mask=inside, other=float("inf"))
        delta1 = tl.load(delta + queries, mask=inside, other=0.0)
        delta2 = tl.load(delta + N + queries, mask=inside, other=0.0)
    else:
        lams = tl.load(lam + queries * stride_ln)
        lse1, lse2 = tl.load(lse + queries), tl.load(lse + N + queries)
        delta1, delta2 = tl.load(delta + queries), tl.load(delta + N + queries)
    map1 = tl.exp2(tl.fma(tl.dot(k1, tl.trans(q1), input_precision="ieee"), scale_log2, -lse1[None, :]))
    map2 = tl.exp2(tl.fma(tl.dot(k2, tl.trans(q2), input_precision="ieee"), scale_log2, -lse2[None, :]))
    lam_map2 = lams[None, :] * map2
    acc_v = tl.dot((map1 - lam_map2).to(grads.dtype), grads, acc_v, input_precision="ieee")
    grad_map = tl.dot(values, tl.trans(grads), input_precision="ieee")
    grad_logits1 = (map1 * (grad_map - delta1[None, :])).to(q1.dtype)
    grad_logits2 = (lam_map2 * (delta2[None, :] - grad_map)).to(q2.dtype)
    acc_k1 = tl.dot(grad_logits1, q1, acc_k1, input_precision="ieee")
    if K2_OFFSET == 0:  # version 2: the two branches have the same keys, whose gradients add up
        acc_k1 = tl.dot(grad_logits2, q2, acc_k1, input_precision="ieee")
    else:
        acc_k2 = tl.dot(grad_logits2, q2, acc_k2, input_precision="ieee")
    return acc_k1, acc_k2, acc_v


@triton.jit(do_not_specialize=RUNTIME_VALUES)
def key_gradient_kernel(
    q, k, v, lam, lse, grad, delta, grad_k, grad_v,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_lb, stride_lh, stride_ln, stride_gb, stride_gh, stride_gn, stride_gkb, stride_gkn, stride_gvb,
    stride_gvn,
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
    lse += head * 2 * N
    delta += head * 2 * N
    # Keys beyond the last one are zeros; their rows of the maps are computed and not stored.
    keys = first + tl.arange(0, BLOCK_K)
    k1 = _load_rows(k, keys, stride_kn, N, D1, D1_PAD, True)  # (BLOCK_K, D1_PAD)
    k2 = k1 if K2_OFFSET == 0 else _load_rows(k + K2_OFFSET, keys, stride_kn, N, D2, D2_PAD, True)
    values = _load_rows(v, keys, stride_vn, N, DV, DV_PAD, True)  # (BLOCK_K, DV_PAD)
    acc_k1, acc_k2 = tl.zeros([BLOCK_K, D1_PAD], tl.float32), tl.zeros([BLOCK_K, D2_PAD], tl.float32)
    acc_v = tl.zeros([BLOCK_K, DV_PAD], tl.float32)
    tail = (N - 1) // BLOCK_Q * BLOCK_Q
    for start in range(0, tail, BLOCK_Q):
        acc_k1, acc_k2, acc_v = _key_gradient_of_queries(
            acc_k1, acc_k2, acc_v, k1, k2, values, q, grad, lam, lse, delta, stride_qn, stride_gn, stride_ln, start, N,
            scale_log2, D1, D2, DV, K2_OFFSET, D1_PAD, D2_PAD, DV_PAD, BLOCK_Q, False
        )  # fmt: skip
    acc_k1, acc_k2, acc_v = _key_gradient_of_queries(
        acc_k1, acc_k2, acc_v, k1, k2, values, q, grad, lam, lse, delta, stride_qn, stride_gn, stride_ln, tail, N,
        scale_log2, D1, D2, DV, K2_OFFSET, D1_PAD, D2_PAD, DV_PAD, BLOCK_Q, True
    )  # fmt: skip
    K_WIDTH: tl.constexpr = D1 if K2_OFFSET == 0 else D1 + D2
    grad_k = _head_pointer(grad_k, head, stride_gkb, K_WIDTH, H)
    _store_rows(grad_k, acc_k1 * scale, keys, stride_gkn, N, D1, D1_PAD)
    if K2_OFFSET > 0:
        _store_rows(grad_k + K2_OFFSET, acc_k2 * scale, keys, stride_gkn, N, D2, D2_PAD)
    _store_rows(_head_pointer(grad_v, head, stride_gvb, DV, H), acc_v, keys, stride_gvn, N, DV, DV_PAD)
