"""The arithmetic of differential attention: two softmax maps, subtracted.

`Differential Transformer` - https://arxiv.org/abs/2410.05258, equations 1 and 3
"""

import torch
import torch.nn.functional as F
from timm.layers import maybe_add_mask, register_notrace_function, resolve_self_attn_mask
from torch import Tensor

from .kernels.layout import HEAD_NORM_EPS, BranchDims, split_branches
from .kernels.operator import attend, attend_and_norm, has_kernel

__all__ = ["differential_attention", "differential_maps", "head_norm"]


def _additive_mask(q: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """The bias to add to the logits: 0 where a key may be seen, -inf (or the user's number) where not."""
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
    """The two softmax maps of every head, before they are subtracted.

    Args:
        q, k: (B, H, N, d1 + d2), the channels of branch 1 first; V2: q (B, H, N, 2 d) and k (B, H, N, d).
        branch_dims: (d1, d2), the widths of the two branches; None: both branches read all of k (V2).
        scale: factor on the logits of both branches.
        attn_mask: bool (True: may be seen) or additive, broadcastable to (B, H, N, N); the same for both maps.
        is_causal: a query sees no later key; combines with attn_mask.

    Returns:
        A1 and A2, (B, H, N, N) each; their rows sum to 1.
    """
    bias = _additive_mask(q, attn_mask, is_causal)
    (q1, k1), (q2, k2) = split_branches(q * scale, k, branch_dims)
    map1 = maybe_add_mask(q1 @ k1.transpose(-2, -1), bias).softmax(dim=-1)
    map2 = maybe_add_mask(q2 @ k2.transpose(-2, -1), bias).softmax(dim=-1)
    return map1, map2


def _leaves_python() -> bool:
    """Whether the model is on its way to where our kernels are not, or under torch.func, which knows none of them."""
    functorch: bool = torch._C._are_functorch_transforms_active()
    return functorch or torch.jit.is_tracing() or torch.compiler.is_exporting()


def head_norm(x: Tensor, weight: Tensor | None, eps: float = HEAD_NORM_EPS) -> Tensor:
    """RMSNorm of each head's output x, (B, H, N, Dv), with a weight (Dv,); None: x as it is."""
    return x if weight is None else F.rms_norm(x, [x.shape[-1]], weight, eps)


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
    """softmax(q1 k1^T scale) v - lam * softmax(q2 k2^T scale) v   (equation 1 of the paper; V2: k1 = k2 = k).

    Args:
        q, k: (B, H, N, d1 + d2), the channels of branch 1 first; V2: q (B, H, N, 2 d) and k (B, H, N, d).
        v: (B, H, N, Dv).
        lam: lambda, any shape that broadcasts to (B, H, N, 1).
        branch_dims: (d1, d2), the widths of the two branches; None: both branches read all of k (V2).
        scale: factor on the logits of both branches.
        attn_mask: bool (True: may be seen) or additive, broadcastable to (B, H, N, N); the same for both maps.
        is_causal: a query sees no later key; combines with attn_mask.
        dropout_p: probability of dropping an entry of either map, independently.
        norm_weight: (Dv,), of an RMSNorm (eps 1e-5) of each head's output; equation 3 has 1 - lambda_init in it.
        fused: the fastest path there is, which keeps no map; False forms the maps (the reference).

    Returns:
        (B, H, N, Dv)
    """
    lam = lam.to(q.dtype)
    if not fused:
        map1, map2 = differential_maps(q, k, branch_dims, scale, attn_mask, is_causal)
        map1, map2 = F.dropout(map1, dropout_p), F.dropout(map2, dropout_p)
        return head_norm((map1 - lam * map2) @ v, norm_weight)

    if not torch.jit.is_scripting():
        plain_call = attn_mask is None and not is_causal and dropout_p == 0.0
        if plain_call and not _leaves_python() and has_kernel(q, v, branch_dims):
            lam = lam.expand(*v.shape[:3], 1)
            if norm_weight is not None and not torch.is_grad_enabled():
                return attend_and_norm(q, k, v, lam, norm_weight, branch_dims, scale)
            return head_norm(attend(q, k, v, lam, branch_dims, scale), norm_weight)

    # Two calls with Dv = 2 d are not eligible for the flash kernels. One call is: 2N queries over the one k and v. In
    # V1 these are [q1, 0] and [0, q2] over [k1, k2]; the zeros contribute exactly nothing to the logits.
    (q1, _), (q2, _) = split_branches(q, k, branch_dims)
    if branch_dims is not None:
        d1, d2 = branch_dims
        q1, q2 = F.pad(q1, [0, d2]), F.pad(q2, [d1, 0])
    q = torch.cat([q1, q2], dim=-2)
    bias = _additive_mask(k, attn_mask, is_causal)
    if bias is not None and bias.shape[-2] != 1:
        bias = torch.cat([bias, bias], dim=-2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout_p, scale=scale)
    out1, out2 = out.chunk(2, dim=-2)
    return head_norm(out1 - lam * out2, norm_weight)
