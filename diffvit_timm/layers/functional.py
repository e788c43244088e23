"""Differential attention as functions: each head subtracts its second softmax map from its first.

`Differential Transformer` - https://arxiv.org/abs/2410.05258, equations 1 and 3
"""

import torch
import torch.nn.functional as F
from timm.layers import maybe_add_mask, register_notrace_function, resolve_self_attn_mask
from torch import Tensor

from .kernels.layout import HEAD_NORM_EPS, BranchDims, split_branches
from .kernels.modes import has_autocast, only_builtin_operators
from .kernels.operator import attend, has_kernel

__all__ = [
    "additive_mask",
    "cast_once",
    "differential_attention",
    "differential_maps",
    "head_norm",
    "stacked_attention",
]


@torch.fx.wrap
@register_notrace_function
def additive_mask(q: Tensor, attn_mask: Tensor | None, is_causal: bool = False) -> Tensor | None:
    """Combine the masks into a bias that is added to the logits; None if there is no mask.

    The bias is 0 where a boolean mask is True and -inf where it is False. An additive mask keeps its values.
    """
    bias = resolve_self_attn_mask(q.shape[-2], q, attn_mask)
    if is_causal:
        causal = resolve_self_attn_mask(q.shape[-2], q, is_causal=True)
        assert causal is not None
        bias = maybe_add_mask(causal, bias)
    return None if bias is None else bias.to(q.dtype)


def differential_maps(
    q: Tensor,
    k: Tensor,
    branch_dims: BranchDims,
    scale: float,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the two softmax maps of every head, before they are subtracted.

    Args:
        q, k: queries and keys, (B, H, N, d1 + d2) each, with the channels of branch 1 first. In version 2 q is
            (B, H, N, 2 d) and k is (B, H, N, d).
        branch_dims: widths (d1, d2) of the two branches, or None if both branches read all of k (version 2).
        scale: factor on the logits of both branches.
        attn_mask: boolean mask (True: the key takes part) or additive mask, broadcastable to (B, H, N, N). Both maps
            use the same mask.
        is_causal: whether a query ignores the keys after it, in addition to attn_mask.

    Returns:
        The maps A1 and A2, (B, H, N, N) each. Their rows sum to 1.
    """
    bias = additive_mask(q, attn_mask, is_causal)
    (q1, k1), (q2, k2) = split_branches(q * scale, k, branch_dims)  # (B, H, N, d1) and (B, H, N, d2)
    map1 = maybe_add_mask(q1 @ k1.transpose(-2, -1), bias).softmax(dim=-1)  # (B, H, N, N)
    map2 = maybe_add_mask(q2 @ k2.transpose(-2, -1), bias).softmax(dim=-1)  # (B, H, N, N)
    return map1, map2


def head_norm(x: Tensor, weight: Tensor | None, eps: float = HEAD_NORM_EPS) -> Tensor:
    """Apply an RMSNorm with a weight, (Dv,), to each head's output x, (B, H, N, Dv). Without a weight, return x."""
    if weight is None:
        return x
    # In the memory order of the kernels, (B, N, H, Dv), the norm needs no copy, nor does the merging of the heads.
    return F.rms_norm(x.transpose(1, 2), [x.shape[-1]], weight, eps).transpose(1, 2)


@torch.fx.wrap
@register_notrace_function
def cast_once(x: Tensor) -> Tensor:
    """Cast x to the dtype of autocast, if it is enabled. Layers with several projections of x would each cast it.

    Like autocast, this does not cast float64.
    """
    if not torch.jit.is_scripting():
        device = x.device.type
        if x.dtype != torch.float64 and has_autocast(device) and torch.is_autocast_enabled(device):
            return x.to(torch.get_autocast_dtype(device))
    return x


@torch.fx.wrap
@register_notrace_function
def differential_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    branch_dims: BranchDims,
    scale: float,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    norm_weight: Tensor | None = None,
    fused: bool = True,
) -> Tensor:
    """Compute softmax(scale q1 k1^T) v - lam * softmax(scale q2 k2^T) v, which is equation 1 of the paper.

    In version 2 both branches have the same keys: k1 = k2 = k.

    Args:
        q, k: queries and keys, (B, H, N, d1 + d2) each, with the channels of branch 1 first. In version 2 q is
            (B, H, N, 2 d) and k is (B, H, N, d).
        v: values, (B, H, N, Dv).
        lam: lambda, in any shape that broadcasts to (B, H, N, 1).
        branch_dims: widths (d1, d2) of the two branches, or None if both branches read all of k (version 2).
        scale: positive factor on the logits of both branches.
        attn_mask: boolean mask (True: the key takes part) or additive mask, broadcastable to (B, H, N, N). Both maps
            use the same mask.
        is_causal: whether a query ignores the keys after it, in addition to attn_mask.
        dropout_p: probability that an entry of a map is dropped, independently in the two maps.
        norm_weight: weight (Dv,) of an RMSNorm (eps 1e-5) of each head's output. For equation 3 it includes the factor
            1 - lambda_init.
        fused: whether to take the fastest available path, which does not store the maps. False is the reference,
            which computes the maps explicitly.

    Returns:
        The output of each head, (B, H, N, Dv).

    Raises:
        ValueError: a scale that is not positive. The kernels take the maximum of a row before they scale it.
    """
    if not scale > 0:
        raise ValueError(f"scale={scale} must be positive")

    # Path 1: our own kernels, which know neither masks nor dropout.
    if fused and not torch.jit.is_scripting():
        without_mask_or_dropout = attn_mask is None and not is_causal and dropout_p == 0.0
        if without_mask_or_dropout and not only_builtin_operators() and has_kernel(q, v, branch_dims):
            lam = lam.to(torch.promote_types(q.dtype, torch.float32)).expand(*v.shape[:3], 1)  # (B, H, N, 1)
            if norm_weight is not None and not torch.is_grad_enabled():
                return attend(q, k, v, lam, branch_dims, scale, norm_weight)
            return head_norm(attend(q, k, v, lam, branch_dims, scale), norm_weight)

    # One number per query and head: the gradients of many queries are added up in float32, not in float16.
    lam = lam.expand(v.shape[0], v.shape[1], v.shape[2], 1).to(q.dtype)
    if not fused:
        map1, map2 = differential_maps(q, k, branch_dims, scale, attn_mask, is_causal)
        # training=False if p is 0: otherwise timm's ONNX export writes Dropout nodes, which OpenVINO refuses.
        map1, map2 = (F.dropout(matrix, dropout_p, dropout_p > 0) for matrix in (map1, map2))
        return head_norm((map1 - lam * map2) @ v, norm_weight)

    # Path 2: PyTorch's fused attention.
    return head_norm(
        stacked_attention(q, k, v, lam, branch_dims, scale, additive_mask(k, attn_mask, is_causal), dropout_p),
        norm_weight,
    )


def stacked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    branch_dims: BranchDims,
    scale: float,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute `differential_attention` by one call of PyTorch's fused attention, with 2 N queries.

    Two calls, one per branch, would have values that are twice as wide as the keys (Dv = 2 d), which the flash kernels
    do not accept. In version 1 the queries are [q1, 0] and [0, q2] over [k1, k2]. The zeros contribute exactly 0 to the
    logits.

    Args:
        q, k, v, branch_dims, scale, dropout_p: as in `differential_attention`.
        lam: lambda in the dtype of q, broadcastable to (B, H, N, 1).
        bias: what is added to the logits of both maps, broadcastable to (B, H, N, N).
    """
    (q1, _), (q2, _) = split_branches(q, k, branch_dims)
    if branch_dims is not None:
        d1, d2 = branch_dims
        q1, q2 = F.pad(q1, [0, d2]), F.pad(q2, [d1, 0])  # (B, H, N, d1 + d2)
    q = torch.cat([q1, q2], dim=-2)  # (B, H, 2 N, width of k)
    if bias is not None and bias.shape[-2] != 1:  # a bias with one row serves all 2 N queries as it is
        bias = torch.cat([bias, bias], dim=-2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout_p, scale=scale)
    out1, out2 = out.chunk(2, dim=-2)  # (B, H, N, Dv)
    return out1 - lam * out2
