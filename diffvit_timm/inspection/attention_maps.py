"""Attention maps of any plain or differential timm ViT, from an ordinary forward pass.

    with capture_attention(model) as captured, torch.no_grad():
        logits = model(images)
    maps = captured[11].maps()              # of the last of 12 layers
    maps.difference                         # A1 - lambda A2, (B, H, N, N)

Hooks store the input of each attention layer, and the maps are computed from it on request. The model therefore still
uses its fused kernels, its logits are the same to the bit, and only the requested maps take memory.
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

from ..layers.base import DifferentialLayer
from ..layers.functional import differential_maps, head_norm

__all__ = ["AttentionMaps", "CapturedAttention", "CapturedLayer", "can_capture", "capture_attention", "stochastic"]

SUPPORTED_LAYERS = (DifferentialLayer, Attention, DiffAttention)


def stochastic(matrix: Tensor) -> Tensor:
    """Divide the rows of a non-negative matrix, (..., N, N), by their sums. A row of zeros becomes the identity's."""
    sums = matrix.sum(dim=-1, keepdim=True)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(sums > 0, matrix / sums.where(sums > 0, 1), identity)


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """The attention maps of one layer, in float32.

    Shapes: B images, H heads, N tokens.

    Attributes:
        map1: A1, (B, H, N, N), whose rows sum to 1. Plain attention has only this map.
        map2: A2, (B, H, N, N), whose rows sum to 1; None for plain attention.
        lam: lambda, broadcastable to (B, H, N, 1); None for plain attention.
    """

    map1: Tensor
    map2: Tensor | None = None
    lam: Tensor | None = None

    @property
    def difference(self) -> Tensor:
        """A1 - lambda A2, (B, H, N, N), whose rows sum to 1 - lambda. For plain attention it is A1."""
        return self.map1 if self.map2 is None or self.lam is None else self.map1 - self.lam * self.map2

    @property
    def attended(self) -> Tensor:
        """The positive part of the difference, (B, H, N, N), with rows rescaled to sum to 1."""
        return stochastic(self.difference.clamp(min=0))


# Two functions per class of attention layer split its forward pass at the product of maps and values:
#   _maps_and_values    tokens -> maps and values
#   _merge_heads        maps times values -> input of the output projection


@singledispatch
def _maps_and_values(
    layer: nn.Module, tokens: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> tuple[AttentionMaps, Tensor]:
    """Compute the maps of a layer, and its values, (B, H, N, Dv), from its input, (B, N, dim)."""
    raise TypeError(f"{type(layer).__name__} is not a supported attention layer")


@singledispatch
def _merge_heads(layer: nn.Module, heads: Tensor, tokens: Tensor) -> Tensor:
    """Turn the outputs of the heads, (B, H, N, Dv), into the input of the output projection, (B, N, dim)."""
    raise TypeError(f"{type(layer).__name__} is not a supported attention layer")


@_maps_and_values.register
def _(
    layer: DifferentialLayer, tokens: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> tuple[AttentionMaps, Tensor]:
    q, k, v, lam, bias = layer.branches(tokens, attn_mask, is_causal)
    map1, map2 = differential_maps(q, k, layer.branch_dims, layer.scale, bias)
    return AttentionMaps(map1.float(), map2.float(), lam), v


@_merge_heads.register
def _(layer: DifferentialLayer, heads: Tensor, tokens: Tensor) -> Tensor:
    return layer.merge_heads(head_norm(heads, layer.head_norm_weight()), tokens)


@_maps_and_values.register
def _(layer: Attention, tokens: Tensor, attn_mask: Tensor | None, is_causal: bool) -> tuple[AttentionMaps, Tensor]:
    B, N, _ = tokens.shape
    qkv = layer.qkv(tokens).reshape(B, N, 3, layer.num_heads, layer.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, d) each
    q, k = layer.q_norm(q), layer.k_norm(k)
    logits = (q * layer.scale) @ k.mT  # (B, H, N, N)
    logits = maybe_add_mask(logits, resolve_self_attn_mask(N, logits, attn_mask, is_causal))
    return AttentionMaps(logits.softmax(dim=-1).float()), v


@_merge_heads.register
def _(layer: Attention, heads: Tensor, tokens: Tensor) -> Tensor:
    merged = layer.norm(heads.transpose(1, 2).flatten(2))  # (B, N, dim)
    return merged if layer.gate is None else merged * layer.gate(tokens).sigmoid()


@_maps_and_values.register
def _(layer: DiffAttention, tokens: Tensor, attn_mask: Tensor | None, is_causal: bool) -> tuple[AttentionMaps, Tensor]:
    B, N, _ = tokens.shape
    qkv = layer.qkv(tokens).reshape(B, N, 3, layer.num_heads, 2, layer.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4, 5)  # (B, H, N, 2, d) each
    q, k = layer.q_norm(q).flatten(-2), layer.k_norm(k).flatten(-2)  # (B, H, N, 2 d), branch 1 first
    map1, map2 = differential_maps(q, k, (layer.head_dim, layer.head_dim), layer.scale, attn_mask, is_causal)
    return AttentionMaps(map1.float(), map2.float(), layer._compute_lambda()), v.flatten(-2)


@_merge_heads.register
def _(layer: DiffAttention, heads: Tensor, tokens: Tensor) -> Tensor:
    heads = layer.sub_norm(heads) * (1 - layer.lambda_init)
    return layer.norm(heads.transpose(1, 2).flatten(2))


@dataclasses.dataclass(frozen=True)
class CapturedLayer:
    """The input of an attention layer in a forward pass.

    The maps are computed with the layer's current weights, so the weights must not change before.

    Attributes:
        layer: attention layer.
        tokens: input of the layer, (B, N, dim).
        merged: input of its output projection, (B, N, dim). If the forward pass recorded a graph, it is a node of it.
        attn_mask, is_causal: as the layer received them.
    """

    layer: nn.Module
    tokens: Tensor
    merged: Tensor
    attn_mask: Tensor | None
    is_causal: bool

    @torch.no_grad()
    def maps(self) -> AttentionMaps:
        """Compute the maps before dropout, detached from the graph."""
        return self._maps_and_values()[0]

    @torch.no_grad()
    def map_gradient(self, gradient: Tensor) -> tuple[AttentionMaps, Tensor]:
        """Compute the maps, and the gradient of a score with respect to A = A1 - lambda A2.

        Args:
            gradient: gradient of the score with respect to `merged`, (B, N, dim).

        Returns:
            The maps, and the gradient with respect to A, (B, H, N, N). With the heads' outputs A v it is the gradient
            with respect to A v, times v^T.
        """
        maps, values = self._maps_and_values()
        values = values.float()  # (B, H, N, Dv)

        def merge(heads: Tensor) -> Tensor:
            return _merge_heads(self.layer, heads, self.tokens)

        backward: Any = torch.func.vjp(merge, maps.difference @ values)[1]
        heads_gradient = backward(gradient.to(values))[0]  # (B, H, N, Dv)
        return maps, heads_gradient @ values.mT

    def _maps_and_values(self) -> tuple[AttentionMaps, Tensor]:
        return _maps_and_values(self.layer, self.tokens.detach(), self.attn_mask, self.is_causal)


class CapturedAttention:
    """The attention layers of the last forward pass, first block first. It supports `len`, indexing and iteration.

    Args:
        model: timm's VisionTransformer, a DiffVisionTransformer, or a subclass.

    Attributes:
        grid: rows and columns of patches in the last forward pass.

    Raises:
        TypeError: a model with a block that has no supported attention layer.
    """

    def __init__(self, model: VisionTransformer) -> None:
        blocks = getattr(model, "blocks", None)
        if not blocks:
            raise TypeError(f"{type(model).__name__} is not a timm VisionTransformer: it has no blocks")
        for number, block in enumerate(blocks):
            if not isinstance(getattr(block, "attn", None), SUPPORTED_LAYERS):
                raise TypeError(
                    f"block {number} of the {type(model).__name__}, a {type(block).__name__}, has no supported "
                    f"attention layer ({', '.join(kind.__name__ for kind in SUPPORTED_LAYERS)})"
                )
        self.model = model
        self.attention_layers: list[Any] = [block.attn for block in blocks]
        self.layers: list[CapturedLayer] = []
        self.grid = (0, 0)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> CapturedLayer:
        if not self.layers:
            raise ValueError("nothing is captured yet: call the model within capture_attention")
        return self.layers[index]

    def __iter__(self) -> Iterator[CapturedLayer]:
        # Index by the number of blocks, so that iterating raises the error above if nothing is captured.
        return (self[index] for index in range(len(self.attention_layers)))

    @property
    def num_prefix_tokens(self) -> int:
        """Number of class, distillation and register tokens before the patches."""
        return self.model.num_prefix_tokens

    @property
    def reads_class_token(self) -> bool:
        """Whether the model's head reads the class token, and not the patches."""
        return self.model.has_class_token and self.model.global_pool not in ("avg", "avgmax", "max", "map")

    def output_rows(self, matrix: Tensor) -> Tensor:
        """Select the row of the model's output: that of the class token, or the mean over the patches.

        Args:
            matrix: attention or a product of it, (..., N, N), with one row per query token.

        Returns:
            The row, (..., N).
        """
        if self.reads_class_token:
            return matrix[..., 0, :]
        return matrix[..., self.num_prefix_tokens :, :].mean(dim=-2)

    def on_patches(self, rows: Tensor) -> Tensor:
        """Drop the prefix tokens of rows, (..., N), and arrange the patches as a grid, (..., rows, columns).

        Raises:
            ValueError: some patches were dropped, as in training.
        """
        patches = rows[..., self.num_prefix_tokens :]
        height, width = self.grid
        if patches.shape[-1] != height * width:
            raise ValueError(
                f"{patches.shape[-1]} patches do not fill the grid of {height} x {width}, because some were dropped: "
                "call model.eval()"
            )
        return patches.unflatten(-1, (height, width))


def can_capture(model: nn.Module) -> bool:
    """Return whether `capture_attention` supports a model."""
    try:
        CapturedAttention(model)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def capture_attention(model: VisionTransformer) -> Iterator[CapturedAttention]:
    """Context manager: capture the attention of the last forward pass within the context.

    All hooks are removed at the end.

    Args:
        model: timm's VisionTransformer or a DiffVisionTransformer, with plain or differential attention. It is not
            changed.

    Raises:
        TypeError: a model with a block that has no supported attention layer.
    """
    captured = CapturedAttention(model)
    inputs: dict[nn.Module, tuple[Tensor, Tensor | None, bool]] = {}

    def start_pass(patch_embed: Any, args: tuple) -> None:
        captured.layers = []
        captured.grid = patch_embed.dynamic_feat_size(args[0].shape[-2:])

    def store_input(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        given = dict(zip(("x", "attn_mask", "is_causal"), args, strict=False)) | kwargs
        inputs[layer] = given["x"], given.get("attn_mask"), given.get("is_causal", False)

    def store_layer(layer: nn.Module, merged: Tensor) -> None:
        tokens, mask, causal = inputs.pop(layer)
        captured.layers.append(CapturedLayer(layer, tokens, merged, mask, causal))

    hooks = [model.patch_embed.register_forward_pre_hook(start_pass)]
    try:
        for layer in captured.attention_layers:
            hooks.append(layer.register_forward_pre_hook(store_input, with_kwargs=True))
            hooks.append(layer.proj.register_forward_pre_hook(lambda _, args, layer=layer: store_layer(layer, args[0])))
        with torch.compiler.set_stance("force_eager"):  # a compiled model would compile its hooks too
            yield captured
    finally:
        for hook in hooks:
            hook.remove()
