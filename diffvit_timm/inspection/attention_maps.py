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
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import DiffAttention, maybe_add_mask
from torch import Tensor, nn

from ..layers.adapters import adapter_of, is_windowed, known_layers, plain_inputs
from ..layers.base import DifferentialLayer
from ..layers.functional import differential_maps, head_norm

__all__ = [
    "AttentionMaps",
    "CapturedAttention",
    "CapturedLayer",
    "capture_attention",
    "check_heat_maps",
    "has_heat_maps",
    "stochastic",
]


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


def _maps_and_values(layer: Any, args: tuple, kwargs: dict) -> tuple[AttentionMaps, Tensor]:
    """Compute the maps of a layer, and its values, (B, H, N, Dv), from the arguments of its forward pass."""
    if isinstance(layer, DifferentialLayer):
        q, k, v, lam, bias = layer.branches(*args, **kwargs)
        map1, map2 = differential_maps(q, k, layer.branch_dims, layer.scale, bias)
        return AttentionMaps(map1.float(), map2.float(), lam), v
    if isinstance(layer, DiffAttention):
        return _timm_differential(layer, *args, **kwargs)
    q, k, v, bias, scale = plain_inputs(layer, args, kwargs)
    logits = maybe_add_mask((q * scale) @ k.mT, bias)  # (B, H, N, N)
    return AttentionMaps(logits.softmax(dim=-1).float()), v


def _timm_differential(
    layer: DiffAttention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> tuple[AttentionMaps, Tensor]:
    """Compute the maps and values of timm's differential attention from its tokens x, (B, N, dim)."""
    B, N, _ = x.shape
    qkv = layer.qkv(x).reshape(B, N, 3, layer.num_heads, 2, layer.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4, 5)  # (B, H, N, 2, d) each
    q, k = layer.q_norm(q).flatten(-2), layer.k_norm(k).flatten(-2)  # (B, H, N, 2 d), branch 1 first
    map1, map2 = differential_maps(q, k, (layer.head_dim, layer.head_dim), layer.scale, attn_mask, is_causal)
    return AttentionMaps(map1.float(), map2.float(), layer._compute_lambda()), v.flatten(-2)


def _merge_heads(layer: Any, heads: Tensor, tokens: Tensor) -> Tensor:
    """Turn the outputs of the heads, (B, H, N, Dv), into the input of the output projection, (B, N, dim)."""
    if isinstance(layer, DifferentialLayer):
        return layer.merge_heads(head_norm(heads, layer.head_norm_weight()), tokens)
    if isinstance(layer, DiffAttention):
        heads = layer.sub_norm(heads) * (1 - layer.lambda_init)
        return layer.norm(heads.transpose(1, 2).flatten(2))
    adapter = adapter_of(layer)
    assert adapter is not None
    return adapter.view.merge_heads(layer, heads, tokens)


@dataclasses.dataclass(frozen=True)
class CapturedLayer:
    """The input of an attention layer in a forward pass.

    The maps are computed with the layer's current weights, so the weights must not change before.

    Attributes:
        layer: attention layer.
        tokens: input of the layer, (B, N, dim).
        arguments: the other arguments of the layer, such as masks and rotary embeddings, by name.
        merged: input of its output projection, (B, N, dim). If the forward pass recorded a graph, it is a node of it.
    """

    layer: nn.Module
    tokens: Tensor
    arguments: dict[str, Any]
    merged: Tensor

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
        return _maps_and_values(self.layer, (self.tokens.detach(),), self.arguments)


class CapturedAttention:
    """The attention layers of the last forward pass, first layer first. It supports `len`, indexing and iteration.

    Args:
        model: a transformer of timm, plain or differential.

    Attributes:
        names: name of each layer in the model.
        grid: rows and columns of patches in the last forward pass.

    Raises:
        TypeError: a model with an attention layer that has no adapter, or without such layers.
    """

    def __init__(self, model: Any) -> None:
        try:
            layers = known_layers(model)
        except ValueError as error:
            raise TypeError(f"the attention of a {type(model).__name__} cannot be captured: {error}") from error
        self.model = model
        self.names = list(layers)
        self.attention_layers: list[Any] = list(layers.values())
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
        return getattr(self.model, "num_prefix_tokens", 0)

    @property
    def reads_class_token(self) -> bool:
        """Whether the model's head reads the class token, and not the patches."""
        has_class_token = getattr(self.model, "cls_token", None) is not None
        return has_class_token and getattr(self.model, "global_pool", None) not in ("avg", "avgmax", "max", "map")

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


def check_heat_maps(model: Any) -> None:
    """Check that heat maps of whole images can be made from a model's attention.

    Raises:
        TypeError: attention that cannot be captured, attention within windows, or a model whose patches have no grid
            that timm's PatchEmbed describes.
    """
    captured = CapturedAttention(model)
    kind = type(model).__name__
    for name, layer in zip(captured.names, captured.attention_layers, strict=True):
        if is_windowed(layer):
            raise TypeError(
                f"{name} of the {kind} attends within windows, so it has no heat map of the whole image: "
                "capture_attention gives its maps, one per window"
            )
    patch_embed = getattr(model, "patch_embed", None)
    if not hasattr(patch_embed, "dynamic_feat_size") or not hasattr(patch_embed, "patch_size"):
        raise TypeError(f"the patches of a {kind} do not come from timm's PatchEmbed, so their grid is not known")


def has_heat_maps(model: Any) -> bool:
    """Return whether heat maps of whole images can be made from a model's attention."""
    try:
        check_heat_maps(model)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def capture_attention(model: Any) -> Iterator[CapturedAttention]:
    """Context manager: capture the attention of the last forward pass within the context.

    All hooks are removed at the end.

    Args:
        model: a transformer of timm, with plain or differential attention. It is not changed.

    Raises:
        TypeError: a model with an attention layer that has no adapter, or without such layers.
    """
    captured = CapturedAttention(model)
    inputs: dict[nn.Module, tuple[Tensor, dict[str, Any]]] = {}

    def store_grid(patch_embed: Any, args: tuple) -> None:
        captured.grid = patch_embed.dynamic_feat_size(args[0].shape[-2:])

    def store_input(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if layer is captured.attention_layers[0]:  # a new forward pass
            captured.layers = []
        names = inspect.signature(type(layer).forward).parameters
        given = dict(zip(list(names)[1:], args, strict=False)) | kwargs  # without self
        inputs[layer] = given.pop("x"), given

    def store_layer(layer: nn.Module, merged: Tensor) -> None:
        captured.layers.append(CapturedLayer(layer, *inputs.pop(layer), merged))

    hooks = []
    if hasattr(getattr(model, "patch_embed", None), "dynamic_feat_size"):
        hooks.append(model.patch_embed.register_forward_pre_hook(store_grid))
    try:
        for layer in captured.attention_layers:
            hooks.append(layer.register_forward_pre_hook(store_input, with_kwargs=True))
            hooks.append(layer.proj.register_forward_pre_hook(lambda _, args, layer=layer: store_layer(layer, args[0])))
        with torch.compiler.set_stance("force_eager"):  # a compiled model would compile its hooks too
            yield captured
    finally:
        for hook in hooks:
            hook.remove()
