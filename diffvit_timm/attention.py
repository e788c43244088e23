"""Differential attention: the arithmetic of the paper, and the two layers that call it.

`Differential Transformer` (V1) - https://arxiv.org/abs/2410.05258, equations 1 to 3
`Differential Transformer V2` - https://huggingface.co/blog/microsoft/diff-attn-v2
Reference implementations: https://github.com/microsoft/unilm/tree/master/Diff-Transformer
V1's parameter names, shapes and head order are those of timm.layers.DiffAttention, so state dicts travel both ways.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    RmsNorm,
    maybe_add_mask,
    register_notrace_function,
    resolve_self_attn_mask,
    use_fused_attn,
)
from torch import Tensor, nn

from .kernels.layout import HEAD_NORM_EPS, BranchDims, split_branches
from .kernels.operator import attend, attend_and_norm, has_kernel

__all__ = [
    "DifferentialAttention",
    "DifferentialAttentionV2",
    "DifferentialLayer",
    "differential_attention",
    "differential_maps",
    "lambda_init_schedule",
]


def lambda_init_schedule(depth: int) -> float:
    """The paper's lambda_init of block `depth`, counted from 0 (section 2.1; the paper's l is `depth + 1`)."""
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


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


class DifferentialLayer(nn.Module):
    """The forward pass that both versions share; each projects its tokens, computes lambda and merges its heads."""

    fused_attn: bool
    qkv: nn.Linear
    attn_drop: nn.Dropout
    proj: nn.Linear
    proj_drop: nn.Dropout
    branch_dims: BranchDims
    num_heads: int
    head_dim: int
    scale: float
    lambda_init: Tensor

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def compute_lambda(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def head_norm_weight(self) -> Tensor | None:
        """(head width,), of a norm of each head's output, with all that the output is multiplied by; None: no norm."""
        return None

    def merge_heads(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """Set lambda_init in place; from now on it is part of the state dict (so copy the model for EMA after)."""
        self.lambda_init.fill_(value)
        self._non_persistent_buffers_set.discard("lambda_init")

    def attend(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """What goes into the output projection, (B, N, dim); arguments as in `forward`."""
        q, k, v = self.project_qkv(x)
        norm_weight = self.head_norm_weight()
        x = differential_attention(
            q,
            k,
            v,
            self.compute_lambda(x),
            self.branch_dims,
            self.scale,
            attn_mask=attn_mask,
            is_causal=is_causal,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            norm_weight=None if norm_weight is None else norm_weight.to(q.dtype),
            fused=self.fused_attn,
        )
        return self.merge_heads(x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """
        Args:
            x: tokens, (B, N, dim).
            attn_mask: bool (True: may be seen) or additive, broadcastable to (B, H, N, N); the same for both maps.
            is_causal: a query sees no later key.

        Returns:
            (B, N, dim)
        """
        return self.proj_drop(self.proj(self.attend(x, attn_mask, is_causal)))


class DifferentialAttention(DifferentialLayer):
    """Multi-head differential self-attention (V1).

    A head owns a pair of maps. Its lambda is `exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init`
    (equation 2); its output passes an RMSNorm shared by the heads and is multiplied by the constant
    `1 - lambda_init` (equation 3, head_norm=True).

    `lambda_init` is a buffer. On the paper's schedule it stays out of the state dict, which then is exactly timm's;
    a number, given here, by `set_lambda_init` or by a checkpoint, is saved and must be there on loading.
    """

    branch_dims: tuple[int, int]
    qk_norm: torch.jit.Final[bool]
    head_norm: torch.jit.Final[bool]
    dual_lambda: torch.jit.Final[bool]
    lambda_a: Tensor
    lambda_b: Tensor
    lambda_q1: Tensor
    lambda_k1: Tensor
    lambda_q2: Tensor
    lambda_k2: Tensor
    branch_widths: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        depth: int = 0,
        dual_lambda: bool = False,
        head_norm: bool = True,
        lambda_init: float | str = "schedule",
        branch_dims: tuple[int, int] | None = None,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            dim: width of the tokens.
            num_heads: number of heads, each with a pair of maps; a head is `dim / num_heads` wide.
            qkv_bias, proj_bias: biases of the projections.
            qk_norm: normalise the queries and keys of each branch; needs branches of equal width.
            scale_norm: normalise before the output projection.
            attn_drop, proj_drop: dropout on the maps, and after the output projection.
            norm_layer: of qk_norm and scale_norm (default: RmsNorm).
            depth: index of the block, from 0; the schedule of lambda_init reads it. timm's `attn_layer=` passes none to
                a layer that is not timm's: use `attn='diff'` of the models here.
            dual_lambda: two scalars in the place of the four lambda vectors.
            head_norm: RMSNorm each head's output and multiply by `1 - lambda_init`.
            lambda_init: a number, or 'schedule' for the paper's `0.8 - 0.6 exp(-0.3 depth)`.
            branch_dims: widths (d1, d2) of the two branches of a head; None halves it, as the paper and timm do.
                The softmax scale is `(head width / 2) ** -0.5` whatever the branch widths.

        Raises:
            ValueError: widths that do not divide, or a lambda_init that is neither a number nor 'schedule'.
        """
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dim % num_heads:
            raise ValueError(f"dim={dim} does not divide into num_heads={num_heads} heads of equal width")
        head_dim = dim // num_heads
        if branch_dims is None and head_dim % 2:
            raise ValueError(
                f"a head of odd width {head_dim} (dim={dim}, num_heads={num_heads}) cannot be halved: "
                f"change num_heads, or pass branch_dims=({head_dim // 2 + 1}, {head_dim // 2})"
            )
        d1, d2 = branch_dims or (head_dim // 2, head_dim // 2)
        if d1 + d2 != head_dim or min(d1, d2) < 1:
            raise ValueError(f"branch_dims=({d1}, {d2}) must be two positive widths that sum to {head_dim}, a head's")
        if qk_norm and d1 != d2:
            raise ValueError(f"qk_norm=True needs branches of equal width, not branch_dims=({d1}, {d2})")
        if lambda_init != "schedule" and (isinstance(lambda_init, str) or not math.isfinite(lambda_init)):
            raise ValueError(f"lambda_init={lambda_init!r} is neither a number nor 'schedule'")
        norm_layer = norm_layer or RmsNorm

        self.num_heads = num_heads
        self.head_dim = head_dim
        self.branch_dims = (d1, d2)
        self.scale = (head_dim / 2) ** -0.5
        self.fused_attn = use_fused_attn()
        self.qk_norm = qk_norm
        self.head_norm = head_norm
        self.dual_lambda = dual_lambda

        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias, **dd)
        self.q_norm = norm_layer(d1, **dd) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(d1, **dd) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm_layer(dim, **dd) if scale_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sub_norm: Any = RmsNorm(head_dim, eps=HEAD_NORM_EPS, **dd) if head_norm else nn.Identity()

        # float32 whatever `dtype`, as in timm: lambda is a difference of exponentials
        names = ("lambda_a", "lambda_b") if dual_lambda else ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
        shape = () if dual_lambda else (head_dim // 2,)
        for name in names:
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=torch.float32)))
        scheduled = isinstance(lambda_init, str)
        self._lambda_start = lambda_init_schedule(depth) if scheduled else float(lambda_init)
        self.register_buffer(
            "lambda_init", torch.empty((), device=device, dtype=torch.float32), persistent=not scheduled
        )
        if d1 != d2:  # no shape tells the cut: weights of another one would load and compute something else
            # floats, as averages of weights (EMA) would cut the fraction of an integer off at each step
            self.register_buffer("branch_widths", torch.empty(2, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The paper's initialisation of lambda (the projections initialise themselves, or the model does)."""
        self.lambda_init.fill_(self._lambda_start)
        if self.branch_dims[0] != self.branch_dims[1]:
            self.branch_widths.copy_(torch.tensor(self.branch_dims))
        if self.dual_lambda:
            nn.init.zeros_(self.lambda_a)
            nn.init.zeros_(self.lambda_b)
        else:
            for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
                nn.init.normal_(vector, std=0.1)

    @torch.jit.ignore
    def init_non_persistent_buffers(self) -> None:
        """timm's hook: fill what no checkpoint brings, after loading onto the meta device."""
        if "lambda_init" in self._non_persistent_buffers_set:
            self.lambda_init.fill_(self._lambda_start)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        if prefix + "lambda_init" in state_dict:
            self._non_persistent_buffers_set.discard("lambda_init")
        if prefix + "branch_widths" in state_dict:
            there = tuple(round(width) for width in state_dict[prefix + "branch_widths"].tolist())
            if there != self.branch_dims:
                errors.append(f"{prefix}branch_dims is {self.branch_dims} here and {there} there")
        if prefix + "qkv.weight" in state_dict and not any(key.startswith(prefix + "lambda_") for key in state_dict):
            errors.append(  # the shapes fit, and strict=False would leave a network that knows nothing
                f"{prefix}qkv.weight is plain attention's, which must be converted: by from_vit, or create_model with "
                "pretrained=True"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def compute_lambda(self, x: Tensor) -> Tensor:
        """lambda, a float32 scalar, the same for all tokens x (equation 2)."""
        if self.dual_lambda:
            return torch.exp(self.lambda_a) - torch.exp(self.lambda_b) + self.lambda_init
        lambda_1 = torch.exp(torch.sum(self.lambda_q1 * self.lambda_k1).float())
        lambda_2 = torch.exp(torch.sum(self.lambda_q2 * self.lambda_k2).float())
        return lambda_1 - lambda_2 + self.lambda_init

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (B, H, N, head width) each, of tokens x (B, N, dim); branch 1 first in q and k."""
        B, N, _ = x.shape
        # Unbound before they are transposed: the gradients come in this memory order, and are stacked in one copy.
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.qk_norm:
            pair = (B, self.num_heads, N, 2, self.head_dim // 2)
            # under autocast some norms give float32
            q = self.q_norm(q.reshape(pair)).flatten(-2).to(v.dtype)
            k = self.k_norm(k.reshape(pair)).flatten(-2).to(v.dtype)
        return q, k, v

    def head_norm_weight(self) -> Tensor | None:
        """Of the norm of each head, with the factor 1 - lambda_init in it; equation 3."""
        return self.sub_norm.weight * (1 - self.lambda_init) if self.head_norm else None

    @torch.jit.ignore
    @torch.no_grad()
    def fuse(self) -> "DifferentialAttention":
        """Fold the weight of the head norm and the factor 1 - lambda_init into `proj`, in place, for inference.

        Where scale_norm follows, or there is no head norm, there is nothing to fold. Returns itself, as timm's
        reparameterize_model puts what it gets in the layer's place.
        """
        if self.head_norm and isinstance(self.norm, nn.Identity):
            weight = self.sub_norm.weight * (1 - self.lambda_init)
            self.proj.weight.mul_(weight.repeat(self.num_heads))
            self.sub_norm.weight.fill_(1 / (1 - self.lambda_init))
        return self

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, H, N, head width) merged to (B, N, dim)."""
        return self.norm(x.transpose(1, 2).flatten(2))


class DifferentialAttentionV2(DifferentialLayer):
    """Multi-head differential self-attention, version 2: two queries a head over one key and value, and no norm.

    `lambda = sigmoid(lambda_proj(x) + logit(lambda_init))`, a number a token and head; `lambda_init` is a buffer, and
    with 0.5 this is the authors' layer. Rows of `qkv`: the queries of head i at 2i (branch 1) and 2i + 1 (branch 2),
    as in theirs, then the keys, then the values.
    """

    lambda_init: Tensor  # TorchScript reads a class's own annotations, or else its parents', which it does not know

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        lambda_init: float = 0.5,
        device=None,
        dtype=None,
    ) -> None:
        """
        Args:
            dim: width of the tokens.
            num_heads: number of heads, each with a pair of maps; a head is `dim / num_heads` wide.
            qkv_bias, proj_bias: biases of the projections.
            attn_drop, proj_drop: dropout on the maps, and after the output projection.
            lambda_init: lambda where lambda_proj gives 0.

        Raises:
            ValueError: widths that do not divide, or a lambda_init that no sigmoid gives.
        """
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if dim % num_heads:
            raise ValueError(f"dim={dim} does not divide into num_heads={num_heads} heads of equal width")
        self._require_sigmoid(lambda_init)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.branch_dims = None  # both branches read all of k
        self.scale = self.head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self._lambda_start = float(lambda_init)

        self.qkv = nn.Linear(dim, dim * 4, bias=qkv_bias, **dd)
        self.lambda_proj = nn.Linear(dim, num_heads, bias=False, **dd)
        self.register_buffer("lambda_init", torch.empty((), device=device, dtype=torch.float32))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill lambda_init (the projections initialise themselves, or the model does)."""
        self.lambda_init.fill_(self._lambda_start)

    @staticmethod
    def _require_sigmoid(lambda_init: float | str) -> None:
        if isinstance(lambda_init, str) or not 0 < lambda_init < 1:
            raise ValueError(f"lambda_init={lambda_init!r} must be between 0 and 1: V2's lambda is a sigmoid")

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """As in `DifferentialLayer`.

        Raises:
            ValueError: a value that no sigmoid gives.
        """
        self._require_sigmoid(value)
        super().set_lambda_init(value)

    def compute_lambda(self, x: Tensor) -> Tensor:
        """lambda of tokens x (B, N, dim): (B, H, N, 1), float32."""
        logits = self.lambda_proj(x).float() + torch.logit(self.lambda_init.float())
        return torch.sigmoid(logits).transpose(1, 2).unsqueeze(-1)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, N, 2 head widths), branch 1 first, k and v (B, H, N, head width) of tokens x (B, N, dim)."""
        dim = x.shape[-1]
        q, k, v = self.qkv(x).split([2 * dim, dim, dim], dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return q, k, v

    def merge_heads(self, x: Tensor) -> Tensor:
        """(B, H, N, head width) merged to (B, N, dim)."""
        return x.transpose(1, 2).flatten(2)
