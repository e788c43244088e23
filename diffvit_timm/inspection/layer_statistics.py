"""Does a network attend differentially: its lambda and the share of negative attention, layer by layer."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from ..layers.attention import DifferentialLayer
from ..layers.functional import differential_maps
from ..layers.hooks import observe_layers
from ..models.diff_vision_transformer import DiffVisionTransformer

__all__ = ["LayerStatistics", "layer_statistics"]


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
    """What each differential layer does on images, first block first; empty for a plain model.

    Attributes:
        lambdas: lambda; of version 2 its mean over tokens and heads.
        negative_mass: share of sum |A1 - lambda A2| below zero, mean over images and heads. 0: the layer attends as one
            softmax does; 1/2: as much is taken away as given, which needs lambda = 1.
    """

    lambdas: list[float]
    negative_mass: list[float]


def layer_statistics(model: DiffVisionTransformer, images: Tensor | Iterable[Tensor]) -> LayerStatistics:
    """lambda and negative attention mass of each layer on images.

    Args:
        model: not changed.
        images: (n, C, H, W), normalised as the model wants them, or batches of such.

    Raises:
        ValueError: no images.
    """
    layers = model.differential_layers()
    sums = torch.zeros(len(layers), 2, dtype=torch.float64)

    def measure(index: int, layer: DifferentialLayer, tokens: Tensor, output: Tensor) -> None:
        q, k, _ = layer.project_qkv(tokens)
        map1, map2 = differential_maps(q, k, layer.branch_dims, layer.scale)
        lam = layer.compute_lambda(tokens)
        attention = (map1 - lam * map2).float()
        mass = attention.clamp(max=0).sum(dim=(-2, -1)).abs() / attention.abs().sum(dim=(-2, -1))
        sums[index] += torch.stack([lam.mean(), mass.mean()]).cpu().double() * len(tokens)

    count = observe_layers(model, layers, images, measure)
    lambdas, negative_mass = (sums / count).T.tolist()
    return LayerStatistics(lambdas, negative_mass)
