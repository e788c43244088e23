"""Attention maps of timm's transformers, plain or differential, from an ordinary forward pass.

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
from functools import partial
from typing import Any

import torch
from timm.layers import maybe_add_mask
from torch import Tensor, nn

from ..layers.adapters import adapter_of, is_windowed, known_layers, plain_inputs
from ..layers.adapters.projections import output_projection
from ..layers.adapters.timm_differential import TIMM_DIFFERENTIAL, read_branches, read_heads
from ..layers.base import DifferentialLayer
from ..layers.functional import differential_maps, head_norm
from .layout import Layout, global_layout, join_windows, patch_embedding, patch_grid, window_layout

__all__ = [
    "AttentionMaps",
    "CapturedAttention",
    "CapturedLayer",
    "capture_attention",
    "check_heat_maps",
    "has_heat_maps",
    "has_windows",
    "stochastic",
]


def stochastic(matrix: Tensor) -> Tensor:
    """Divide the rows of a non-negative matrix, (..., N, N), by their sums. The identity replaces rows of zeros."""
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
    if isinstance(layer, (DifferentialLayer, *TIMM_DIFFERENTIAL)):
        if isinstance(layer, DifferentialLayer):
            (q, k, v, lam, bias), widths = layer.branches(*args, **kwargs), layer.branch_dims
        else:
            (q, k, v, lam, bias), widths = read_branches(layer, *args, **kwargs), (layer.head_dim, layer.head_dim)
        map1, map2 = differential_maps(q, k, widths, layer.scale, bias)
        return AttentionMaps(map1.float(), map2.float(), lam), v
    q, k, v, bias, scale = plain_inputs(layer, args, kwargs)
    logits = maybe_add_mask((q * scale) @ k.mT, bias)  # (B, H, N, N)
    return AttentionMaps(logits.softmax(dim=-1).float()), v


def _merge_heads(layer: Any, heads: Tensor, tokens: Tensor) -> Tensor:
    """Turn the outputs of the heads, (B, H, N, Dv), into the input of the output projection, (B, N, dim)."""
    if isinstance(layer, DifferentialLayer):
        return layer.merge_heads(head_norm(heads, layer.head_norm_weight()), tokens)
    if isinstance(layer, TIMM_DIFFERENTIAL):
        return read_heads(layer, heads)
    adapter = adapter_of(layer)
    assert adapter is not None
    return adapter.view.merge_heads(layer, heads, tokens)


@dataclasses.dataclass(frozen=True)
class CapturedLayer:
    """The input of an attention layer in a forward pass.

    The maps are computed with the layer's current weights, so do not change the weights before you read the maps.

    Attributes:
        layer: attention layer.
        tokens: first argument of the layer; (B, N, dim) for most layers.
        arguments: the other arguments of the layer, such as masks and rotary embeddings, by name.
        layout: where the tokens lie in the image.
        merged: input of its output projection, (B, N, dim), in which the features of an MLP may follow the heads. If
            the forward pass recorded a graph, it is a node of it.
    """

    layer: nn.Module
    tokens: Tensor
    arguments: dict[str, Any]
    layout: Layout
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
            The maps, and the gradient with respect to A, (B, H, N, N). The heads' outputs are A v, so it is the
            gradient with respect to A v, times v^T.
        """
        maps, values = self._maps_and_values()
        values = values.float()  # (B, H, N, Dv)

        def merge(heads: Tensor) -> Tensor:
            return _merge_heads(self.layer, heads, self.tokens)

        backward: Any = torch.func.vjp(merge, maps.difference @ values)[1]
        width = values.shape[1] * values.shape[-1]  # features of an MLP may follow in `merged`
        heads_gradient = backward(gradient[..., :width].to(values))[0]  # (B, H, N, Dv)
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
        """Select the row of the token that the classifier reads: the class token, or the mean over the patches.

        Args:
            matrix: attention or a product of it, (..., N, N), with one row per query token.

        Returns:
            The row, (..., N).
        """
        if self.reads_class_token:
            return matrix[..., 0, :]
        return matrix[..., self.num_prefix_tokens :, :].mean(dim=-2)

    def output_attention(self, layer: CapturedLayer, matrix: Tensor) -> Tensor:
        """Select the attention of the model's output in one layer, and arrange the patches as a grid.

        In a layer with windows it is the attention that each patch gets from its window, as the mean over the window's
        queries.

        Args:
            layer: a captured layer.
            matrix: a map of the layer, (B, H, N, N), or (B * windows, H, N, N) with windows.

        Returns:
            The attention, (B, H, rows, columns). The grid of a hierarchical network shrinks from stage to stage.
        """
        if layer.layout.places is None:
            return self.on_patches(self.output_rows(matrix))
        return join_windows(matrix.mean(dim=-2), layer.layout)

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


def has_windows(model: nn.Module) -> bool:
    """Return whether layers of a model attend within windows of the image."""
    return any(map(is_windowed, known_layers(model).values()))


def check_heat_maps(model: Any) -> None:
    """Check that rollout and relevance are possible for a model.

    Raises:
        TypeError: attention that cannot be captured, attention within windows, or a model whose patches have no grid
            that is known.
    """
    captured = CapturedAttention(model)
    for name, layer in zip(captured.names, captured.attention_layers, strict=True):
        if is_windowed(layer):
            raise TypeError(
                f"{name} of the {type(model).__name__} attends within windows, so it has no attention from patch to "
                "patch of the whole image"
            )
    patch_embedding(model)


def has_heat_maps(model: Any) -> bool:
    """Return whether rollout and relevance are possible for a model."""
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
    layouts: dict[nn.Module, Layout] = {}  # of layers with windows

    def store_grid(embedding: Any, args: tuple) -> None:
        if torch.is_tensor(args[0]) and args[0].ndim == 4:
            height, width = args[0].shape[-2:]
            captured.grid = patch_grid(embedding, (height, width))

    def store_layout(block: nn.Module, args: tuple, layer: nn.Module) -> None:
        layouts[layer] = window_layout(block, args[0].shape[1:3])  # a block with windows gets (B, rows, columns, dim)

    def store_input(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if layer is captured.attention_layers[0]:  # a new forward pass
            captured.layers = []
        names = inspect.signature(type(layer).forward).parameters
        given = dict(zip(list(names)[1:], args, strict=False)) | kwargs  # without self
        inputs[layer] = given.pop("x"), given

    def store_layer(layer: nn.Module, merged: Tensor) -> None:
        layout = layouts.get(layer) or global_layout(captured.grid)
        captured.layers.append(CapturedLayer(layer, *inputs.pop(layer), layout, merged))

    hooks = []
    with contextlib.suppress(TypeError):  # the maps of a model without a known grid can be captured too
        hooks.append(patch_embedding(model).register_forward_pre_hook(store_grid))
    try:
        for name, layer in zip(captured.names, captured.attention_layers, strict=True):
            if is_windowed(layer):
                block = model.get_submodule(name.rpartition(".")[0])
                hooks.append(block.register_forward_pre_hook(partial(store_layout, layer=layer)))
            hooks.append(layer.register_forward_pre_hook(store_input, with_kwargs=True))
            projection = output_projection(layer)
            hooks.append(projection.register_forward_pre_hook(lambda _, args, layer=layer: store_layer(layer, args[0])))
        with torch.compiler.set_stance("force_eager"):  # a compiled model would compile its hooks too
            yield captured
    finally:
        for hook in hooks:
            hook.remove()
