"""The attention maps of any plain or differential timm ViT, from an ordinary forward pass.

    with capture_attention(model) as captured, torch.no_grad():
        logits = model(images)
    maps = captured[11].maps()              # of the last of 12 layers
    maps.difference                         # A1 - lambda A2, (B, H, N, N)

Hooks keep what each attention layer was given; the maps are computed from that when they are asked for. So fused
kernels stay in use, the logits are the same to the bit, and no more maps are in memory than are looked at.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import singledispatch
from typing import Any

import torch
from timm.layers import Attention, DiffAttention, maybe_add_mask, resolve_self_attn_mask
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..layers.attention import DifferentialLayer
from ..layers.functional import differential_maps, head_norm

__all__ = ["AttentionMaps", "CapturedAttention", "CapturedLayer", "can_capture", "capture_attention", "stochastic"]


def stochastic(matrix: Tensor) -> Tensor:
    """A non-negative matrix (..., N, N) with its rows divided by their sums; a row of zeros becomes the identity's."""
    sums = matrix.sum(dim=-1, keepdim=True)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(sums > 0, matrix / sums.where(sums > 0, 1), identity)


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """The maps of one layer, float32.

    Attributes:
        map1: A1, (B, H, N, N), rows sum to 1; the only map of plain attention.
        map2: A2, the same; None in plain attention.
        lam: lambda, broadcastable to (B, H, N, 1); None in plain attention.
    """

    map1: Tensor
    map2: Tensor | None = None
    lam: Tensor | None = None

    @property
    def difference(self) -> Tensor:
        """A1 - lambda A2, (B, H, N, N), rows sum to 1 - lambda; A1 in plain attention."""
        return self.map1 if self.map2 is None or self.lam is None else self.map1 - self.lam * self.map2

    @property
    def attended(self) -> Tensor:
        """The positive part of the difference, (B, H, N, N), rows sum to 1: what a head looks at."""
        return stochastic(self.difference.clamp(min=0))


@dataclasses.dataclass(frozen=True)
class _Heads:
    """What an attention layer computes before its heads meet: queries and keys to maps, and values (B, H, N, Dv)."""

    maps: AttentionMaps
    values: Tensor


@singledispatch
def _heads(layer: nn.Module, tokens: Tensor, attn_mask: Tensor | None, is_causal: bool) -> _Heads:
    raise TypeError(f"the attention of a {type(layer).__name__} is not known")


@singledispatch
def _merge(layer: nn.Module, heads: Tensor, tokens: Tensor) -> Tensor:
    """Outputs of the heads, (B, H, N, Dv), to the input of the output projection, (B, N, dim)."""
    raise TypeError(f"the attention of a {type(layer).__name__} is not known")


@_heads.register
def _(layer: DifferentialLayer, tokens: Tensor, attn_mask: Tensor | None, is_causal: bool) -> _Heads:
    q, k, v = layer.project_qkv(tokens)
    map1, map2 = differential_maps(q, k, layer.branch_dims, layer.scale, attn_mask, is_causal)
    return _Heads(AttentionMaps(map1.float(), map2.float(), layer.compute_lambda(tokens)), v)


@_merge.register
def _(layer: DifferentialLayer, heads: Tensor, tokens: Tensor) -> Tensor:
    return layer.merge_heads(head_norm(heads, layer.head_norm_weight()))


@_heads.register
def _(layer: Attention, tokens: Tensor, attn_mask: Tensor | None, is_causal: bool) -> _Heads:
    B, N, _ = tokens.shape
    q, k, v = layer.qkv(tokens).reshape(B, N, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
    q, k = layer.q_norm(q), layer.k_norm(k)
    logits = (q * layer.scale) @ k.mT
    logits = maybe_add_mask(logits, resolve_self_attn_mask(N, logits, attn_mask, is_causal))
    return _Heads(AttentionMaps(logits.softmax(dim=-1).float()), v)


@_merge.register
def _(layer: Attention, heads: Tensor, tokens: Tensor) -> Tensor:
    merged = layer.norm(heads.transpose(1, 2).flatten(2))
    return merged if layer.gate is None else merged * layer.gate(tokens).sigmoid()


@_heads.register
def _(layer: DiffAttention, tokens: Tensor, attn_mask: Tensor | None, is_causal: bool) -> _Heads:
    B, N, _ = tokens.shape
    q, k, v = layer.qkv(tokens).reshape(B, N, 3, layer.num_heads, 2, layer.head_dim).permute(2, 0, 3, 1, 4, 5)
    q, k = layer.q_norm(q).flatten(-2), layer.k_norm(k).flatten(-2)
    map1, map2 = differential_maps(q, k, (layer.head_dim, layer.head_dim), layer.scale, attn_mask, is_causal)
    return _Heads(AttentionMaps(map1.float(), map2.float(), layer._compute_lambda()), v.flatten(-2))


@_merge.register
def _(layer: DiffAttention, heads: Tensor, tokens: Tensor) -> Tensor:
    heads = layer.sub_norm(heads) * (1 - layer.lambda_init)
    return layer.norm(heads.transpose(1, 2).flatten(2))


@dataclasses.dataclass(frozen=True)
class CapturedLayer:
    """What an attention layer was given in a forward pass; its weights must not change before the maps are computed.

    Attributes:
        layer: the attention layer.
        tokens: its input, (B, N, dim).
        merged: the input of its output projection, (B, N, dim), a node of the graph where there is one.
        attn_mask, is_causal: as the layer got them.
    """

    layer: nn.Module
    tokens: Tensor
    merged: Tensor
    attn_mask: Tensor | None
    is_causal: bool

    @torch.no_grad()
    def maps(self) -> AttentionMaps:
        """The maps before their dropout, detached."""
        return self._heads().maps

    @torch.no_grad()
    def map_gradient(self, gradient: Tensor) -> tuple[AttentionMaps, Tensor]:
        """The maps, and the gradient of a score with respect to their difference.

        Args:
            gradient: of the score with respect to `merged`, (B, N, dim).

        Returns:
            The maps, and (B, H, N, N): the gradient of the heads' outputs A v times v^T.
        """
        heads = self._heads()
        values = heads.values.float()
        back: Any = torch.func.vjp(lambda out: _merge(self.layer, out, self.tokens), heads.maps.difference @ values)[1]
        return heads.maps, back(gradient.to(values))[0] @ values.mT

    def _heads(self) -> _Heads:
        return _heads(self.layer, self.tokens.detach(), self.attn_mask, self.is_causal)


class CapturedAttention:
    """The attention layers of the last forward pass, first block first: `len`, an index, iteration.

    Args:
        model: timm's VisionTransformer, ours or a subclass.

    Raises:
        TypeError: a model whose blocks have no attention layer that is known.
    """

    def __init__(self, model: VisionTransformer) -> None:
        blocks = getattr(model, "blocks", None)
        if not blocks:
            raise TypeError(f"{type(model).__name__} is no timm VisionTransformer: it has no blocks")
        known = (DifferentialLayer, Attention, DiffAttention)
        for number, block in enumerate(blocks):
            if not isinstance(getattr(block, "attn", None), known):
                raise TypeError(
                    f"block {number} of the {type(model).__name__}, a {type(block).__name__}, has no attention layer "
                    f"that is known: {', '.join(kind.__name__ for kind in known)}"
                )
        self.model = model
        self.attention_layers: list[Any] = [block.attn for block in blocks]
        self.layers: list[CapturedLayer] = []
        self.grid = (0, 0)  # rows and columns of patches of the last images

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> CapturedLayer:
        if not self.layers:
            raise ValueError("nothing is captured yet: call the model within capture_attention")
        return self.layers[index]

    def __iter__(self) -> Iterator[CapturedLayer]:
        return (self[index] for index in range(len(self.attention_layers)))

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens before the patches."""
        return self.model.num_prefix_tokens

    @property
    def reads_class_token(self) -> bool:
        """Whether the model's head reads the class token, and not the patches."""
        return self.model.has_class_token and self.model.global_pool not in ("avg", "avgmax", "max", "map")

    def output_rows(self, matrix: Tensor) -> Tensor:
        """The row of what the model's head reads: of the class token, or the mean over the patches.

        Args:
            matrix: (..., N, N), a row a token that looks.

        Returns:
            (..., N)
        """
        if self.reads_class_token:
            return matrix[..., 0, :]
        return matrix[..., self.num_prefix_tokens :, :].mean(dim=-2)

    def on_patches(self, rows: Tensor) -> Tensor:
        """What falls on the patches, (..., N) to (..., rows, columns).

        Raises:
            ValueError: some patches were dropped, as in training.
        """
        patches = rows[..., self.num_prefix_tokens :]
        height, width = self.grid
        if patches.shape[-1] != height * width:
            raise ValueError(
                f"{patches.shape[-1]} patches are no grid of {height} x {width}: some were dropped; call model.eval()"
            )
        return patches.unflatten(-1, (height, width))


def can_capture(model: nn.Module) -> bool:
    """Whether the attention of a model can be seen."""
    try:
        CapturedAttention(model)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def capture_attention(model: VisionTransformer) -> Iterator[CapturedAttention]:
    """Keep what the attention layers are given in the last forward pass, while the context lasts; no hook stays behind.

    Args:
        model: timm's VisionTransformer with plain or differential attention, ours or timm's; not changed.

    Raises:
        TypeError: a model whose attention is not known.
    """
    captured = CapturedAttention(model)
    inputs: dict[nn.Module, tuple[Tensor, Tensor | None, bool]] = {}

    def begin(patch_embed: Any, args: tuple) -> None:
        captured.layers = []
        captured.grid = patch_embed.dynamic_feat_size(args[0].shape[-2:])

    def arrive(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        given = dict(zip(("x", "attn_mask", "is_causal"), args, strict=False)) | kwargs
        inputs[layer] = given["x"], given.get("attn_mask"), given.get("is_causal", False)

    def leave(layer: nn.Module, args: tuple) -> None:
        tokens, mask, causal = inputs.pop(layer)
        captured.layers.append(CapturedLayer(layer, tokens, args[0], mask, causal))

    hooks = [model.patch_embed.register_forward_pre_hook(begin)]
    try:
        for layer in captured.attention_layers:
            hooks.append(layer.register_forward_pre_hook(arrive, with_kwargs=True))
            hooks.append(layer.proj.register_forward_pre_hook(lambda _, args, layer=layer: leave(layer, args)))
        with torch.compiler.set_stance("force_eager"):  # a compiled model would compile its hooks too
            yield captured
    finally:
        for hook in hooks:
            hook.remove()
