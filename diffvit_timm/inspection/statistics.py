"""Statistics of attention, per layer and per head.

Per layer: lambda, and the share of negative attention, which tell whether a network attends differentially.
Per head: to how many tokens, how far and how much to tokens that are not patches a head attends.

`Do Vision Transformers See Like Convolutional Neural Networks?` - https://arxiv.org/abs/2108.08810 (distance)
`Vision Transformers Need Registers` - https://arxiv.org/abs/2309.16588 (attention to tokens that are not patches)
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.base import DifferentialLayer, differential_layers
from ..layers.functional import differential_maps
from ..layers.hooks import Call, observe_layers
from .attention_maps import AttentionMaps, CapturedAttention
from .layout import patch_embedding

__all__ = [
    "HeadStatistics",
    "LayerStatistics",
    "attention_distance",
    "attention_entropy",
    "head_statistics",
    "layer_statistics",
    "negative_mass",
    "prefix_share",
    "stack_heads",
]

Which = Literal["attended", "map1", "map2"]


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
    """Statistics of the differential layers, first block first. A plain model has empty lists.

    Attributes:
        lambdas: lambda of each layer; in version 2 its mean over tokens and heads.
        negative_mass: share of sum |A1 - lambda A2| that is below zero, mean over images and heads. 0 means that the
            layer attends like a single softmax; 1/2 means that it subtracts as much as it adds, which needs
            lambda = 1.
    """

    lambdas: list[float]
    negative_mass: list[float]


def layer_statistics(model: nn.Module, images: Tensor | Iterable[Tensor]) -> LayerStatistics:
    """Compute lambda and the share of negative attention of each differential layer.

    Args:
        model: ViT with timm's forward_features. It is not changed.
        images: images, (n, C, H, W), normalised for the model, or batches of such images.

    Raises:
        ValueError: no images.
    """
    layers = differential_layers(model)
    sums = torch.zeros(len(layers), 3, dtype=torch.float64)  # lambda, negative mass and number of maps

    def add_batch(index: int, layer: DifferentialLayer, call: Call) -> None:
        q, k, _, lam, bias = layer.branches(*call.args, **call.kwargs)
        map1, map2 = differential_maps(q, k, layer.branch_dims, layer.scale, bias)  # (B, H, N, N) each
        attention = (map1 - lam * map2).float()
        mass = negative_mass(attention)
        means = torch.stack([lam.mean(), mass.mean(), torch.ones_like(mass.mean())])
        sums[index] += means.cpu().double() * len(q)  # images, or windows of images

    observe_layers(model, layers, images, add_batch)
    lambdas, masses = (sums[:, :2] / sums[:, 2:]).T.tolist()
    return LayerStatistics(lambdas, masses)


def negative_mass(attention: Tensor) -> Tensor:
    """Compute the share of sum |A| that is below zero, over the whole map of each head.

    Args:
        attention: A1 - lambda A2, (B, H, N, N).

    Returns:
        The share of each image and head, (B, H).
    """
    return attention.clamp(max=0).sum(dim=(-2, -1)).abs() / attention.abs().sum(dim=(-2, -1))


class HeadStatistics(NamedTuple):
    """Statistics of every layer and head, (L, H) each: means over the images and over the query tokens.

    They are NaN for heads that a layer does not have: the stages of a hierarchical network have different numbers.

    Attributes:
        entropy: entropy of a query's attention, in nats. It is log N if the query attends to all N tokens equally.
        distance: distance between a patch and the patches that it attends to, in pixels.
        prefix: share of the attention that goes to class, distillation and register tokens.
    """

    entropy: Tensor
    distance: Tensor
    prefix: Tensor


def attention_entropy(attention: Tensor) -> Tensor:
    """Compute the entropy of the rows in nats, as the mean over images and rows.

    Args:
        attention: attention maps, (B, H, N, N), whose rows sum to 1.

    Returns:
        The entropy of each head, (H,).
    """
    return -torch.special.xlogy(attention, attention).sum(dim=-1).mean(dim=(0, 2))  # xlogy(0, 0) is 0


def attention_distance(attention: Tensor, grid: tuple[int, int], patch_size: tuple[float, ...]) -> Tensor:
    """Compute the mean distance between the centre of a patch and the centres of the patches that it attends to.

    Attention to prefix tokens, and the rows of prefix tokens, are left out.

    Args:
        attention: attention maps, (B, H, N, N), whose rows sum to 1. The last tokens are the patches.
        grid: rows and columns of patches.
        patch_size: height and width of a patch, in pixels.

    Returns:
        The distance of each head in pixels, (H,).
    """
    count = grid[0] * grid[1]
    # The row and column of each patch, times the size of a patch: (patches, 2), in pixels.
    places = torch.cartesian_prod(*(torch.arange(n, dtype=attention.dtype) for n in grid)) * torch.tensor(patch_size)
    distances = torch.cdist(places, places).to(attention)  # (patches, patches)
    patches = attention[..., -count:, -count:]  # (B, H, patches, patches)
    total = patches.sum(dim=-1)  # (B, H, patches), the share of each row that is on patches
    mean = (patches * distances).sum(dim=-1) / total.where(total > 0, 1)
    # A row that attends only to prefix tokens has no distance, and is left out of the mean.
    return (mean * (total > 0)).sum(dim=(0, 2)) / (total > 0).sum(dim=(0, 2)).clamp(min=1)


def prefix_share(attention: Tensor, num_prefix_tokens: int) -> Tensor:
    """Compute the share of the attention that goes to the prefix tokens, as the mean over images and rows.

    Args:
        attention: attention maps, (B, H, N, N), whose rows sum to 1.
        num_prefix_tokens: number of tokens before the patches.

    Returns:
        The share of each head, (H,).
    """
    return attention[..., :num_prefix_tokens].sum(dim=-1).mean(dim=(0, 2))


def head_statistics(captured: CapturedAttention, which: Which = "attended") -> HeadStatistics:
    """Compute entropy, distance and prefix share of every layer and head.

    Args:
        captured: attention of a forward pass.
        which: 'attended' for the positive part of A1 - lambda A2 with rows that sum to 1, 'map1' or 'map2'.

    Raises:
        ValueError: 'map2' of plain attention.
        TypeError: a model whose grid of patches is not known.
    """
    patch_size = patch_embedding(captured.model).patch_size
    rows = []
    for layer in captured:
        attention = _select(layer.maps(), which)
        # The patches of a later stage of a hierarchical network are larger.
        size = tuple(
            pixels * first / own
            for pixels, first, own in zip(patch_size, captured.grid, layer.layout.grid, strict=True)
        )
        distance = attention_distance(attention, layer.layout.window, size)
        share = prefix_share(attention, captured.num_prefix_tokens)
        rows.append(torch.stack([attention_entropy(attention), distance, share]))  # (3, H)
    return HeadStatistics(*stack_heads(rows).unbind(1))  # three of (L, H)


def stack_heads(rows: list[Tensor]) -> Tensor:
    """Stack values of heads, (..., H) for each layer, to (L, ..., H), with NaN for heads that a layer does not have."""
    heads = max(row.shape[-1] for row in rows)
    return torch.stack([F.pad(row, (0, heads - row.shape[-1]), value=torch.nan) for row in rows])


def _select(maps: AttentionMaps, which: Which) -> Tensor:
    attention = getattr(maps, which)
    if attention is None:
        raise ValueError(f"which={which!r} needs differential attention: a plain layer has only map1")
    return attention
