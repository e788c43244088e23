"""One image through one network: its maps are computed once and kept, and a click only selects rows of them."""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..inspection.attention_maps import AttentionMaps, CapturedAttention, capture_attention
from ..inspection.layout import patch_embedding
from ..inspection.overlay import Box, patched_box
from ..inspection.rollout import class_relevance, rollout
from ..inspection.statistics import negative_mass
from ..models.outputs import probabilities
from .network import ExploredNetwork

__all__ = ["NetworkView", "Patch", "Point", "QueryMaps", "look"]

Point = tuple[float, float] | None  # of an image, as shares of its width and height; None: the query is the output
Patch = tuple[int, int] | None  # row and column of the patch that is the query; None: the query is the output


class QueryMaps(NamedTuple):
    """The attention of one query token in one layer, as maps on the grid of patches.

    Attributes:
        map1: A1, (rows, columns); for plain attention its only map.
        map2: A2, (rows, columns); None for plain attention.
        difference: A1 - lambda A2, (rows, columns); None for plain attention.
        lam: lambda of the query; None for plain attention.
        off_patches: share of sum |A1 - lambda A2| that lies on class, distillation and register tokens.
    """

    map1: np.ndarray
    map2: np.ndarray | None
    difference: np.ndarray | None
    lam: float | None
    off_patches: float


@dataclasses.dataclass(frozen=True)
class NetworkView:
    """The predictions of a network for an image, and all its attention maps.

    Shapes: L layers, H heads, N tokens. Everything is on the CPU.

    Attributes:
        network: the network.
        image: the image, in the PIL mode of the network.
        box: part of the image that the patches cover, in pixels.
        grid: rows and columns of patches.
        shares: probability of each class, (classes,); empty for a network without a head.
        maps: maps of each layer, (1, H, N, N) each.
        rolled: rollout, (1, N, N).
        relevant: relevance for the predicted class, (1, N, N); None for a network without a head.
        lambdas: lambda of each layer, as the mean over heads and tokens; NaN for a plain layer.
        negative: share of sum |A1 - lambda A2| below zero in each layer, mean over heads; NaN for a plain layer.
        reader: selects the row of the network's output, and arranges rows on the grid.
    """

    network: ExploredNetwork
    image: Image.Image
    box: Box
    grid: tuple[int, int]
    shares: Tensor
    maps: list[AttentionMaps]
    rolled: Tensor
    relevant: Tensor | None
    lambdas: list[float]
    negative: list[float]
    reader: CapturedAttention

    def top_classes(self, count: int) -> list[tuple[str, float]]:
        """Return the likeliest classes with their probabilities, the likeliest first."""
        found = self.shares.topk(min(count, len(self.shares)))
        return [
            (self.network.classes[c], p) for c, p in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    def patch_at(self, x: float, y: float) -> tuple[int, int]:
        """Return the row and the column of the patch at a point, or of the nearest patch for a point outside all.

        Args:
            x, y: the point, as shares of the width and the height of the image.
        """
        left, top, right, bottom = self.box
        rows, columns = self.grid
        row = (y * self.image.height - top) / (bottom - top) * rows
        column = (x * self.image.width - left) / (right - left) * columns
        return min(max(int(row // 1), 0), rows - 1), min(max(int(column // 1), 0), columns - 1)

    def query_patch(self, point: Point) -> Patch:
        """Return the patch at a point; None for the output."""
        return None if point is None else self.patch_at(*point)

    def has(self, layer: int, head: int | None) -> bool:
        """Return whether the network has a layer, and the layer a head. None stands for the mean over the heads."""
        return layer < len(self.maps) and (head is None or head < self.network.heads[layer])

    def query_maps(self, patch: Patch, layer: int, head: int | None) -> QueryMaps:
        """Return what a query attends to in one layer.

        Args:
            patch: row and column of the query; None for the token that the classifier reads.
            layer: index of a layer that the network has.
            head: index of a head that the layer has; None for the mean over the heads.
        """
        maps = self.maps[layer]
        prefix = self.reader.num_prefix_tokens

        def of_head(matrix: Tensor) -> Tensor:  # (1, H, N, N) -> (N,)
            row = self._row(matrix, patch)[0]  # (H, N)
            return row.mean(dim=0) if head is None else row[head]

        row = of_head(maps.difference)
        off_patches = (row[:prefix].abs().sum() / row.abs().sum()).item() if row.any() else 0.0
        if maps.map2 is None or maps.lam is None:
            return QueryMaps(self._on_grid(row), None, None, None, off_patches)
        lam = of_head(maps.lam.expand_as(maps.map1))[0].item()  # the same for all keys
        map1, map2 = self._on_grid(of_head(maps.map1)), self._on_grid(of_head(maps.map2))
        return QueryMaps(map1, map2, self._on_grid(row), lam, off_patches)

    def rollout(self, patch: Patch) -> np.ndarray:
        """Return the rollout of a query, (rows, columns); `patch` as in `query_maps`."""
        return self._on_grid(self._row(self.rolled, patch)[0])

    def relevance(self) -> np.ndarray | None:
        """Return the relevance of the patches for the predicted class, (rows, columns); None without a head."""
        return None if self.relevant is None else self._on_grid(self._row(self.relevant, None)[0])

    def _row(self, matrix: Tensor, patch: Patch) -> Tensor:
        """Select the row of a query in matrices, (..., N, N)."""
        if patch is None:
            return self.reader.output_rows(matrix)
        return matrix[..., self.reader.num_prefix_tokens + patch[0] * self.grid[1] + patch[1], :]

    def _on_grid(self, row: Tensor) -> np.ndarray:
        return self.reader.on_patches(row).numpy()


def look(network: ExploredNetwork, image: Image.Image) -> NetworkView:
    """Run a network on an image, and compute its maps, rollout, relevance and statistics.

    Args:
        network: network of the explorer.
        image: decoded image.

    Raises:
        InputError: the image has one row or column of pixels, or nothing is left of it after the transform, because it
            is too long and narrow.
    """
    image = image.convert(network.mode)
    try:
        box = patched_box(image.size, network.transform, patch_embedding(network.model))
    except ValueError as error:
        raise InputError(f"the image is too long and narrow for {network.name}: {error}") from error
    if box.right <= box.left or box.bottom <= box.top:
        raise InputError(f"the image has {image.width} x {image.height} pixels, which are too few: use a larger one")
    pixels = network.transform(image)[None].to(network.device)  # (1, C, H, W)
    relevant = None
    if network.model.num_classes:
        relevant, logits, captured = class_relevance(network.model, pixels)
        shares = probabilities(network.model, logits[0]).cpu()
    else:
        with capture_attention(network.model) as captured, torch.no_grad():
            network.model(pixels)
        shares = torch.empty(0)
    rolled = rollout(captured)
    maps = [_on_cpu(layer.maps()) for layer in captured]
    captured.layers = []  # they hold the graph of the forward pass
    return NetworkView(
        network=network,
        image=image,
        box=box,
        grid=captured.grid,
        shares=shares,
        maps=maps,
        rolled=rolled.cpu(),
        relevant=None if relevant is None else relevant.detach().cpu(),
        lambdas=[float("nan") if one.lam is None else one.lam.float().mean().item() for one in maps],
        negative=[float("nan") if one.map2 is None else negative_mass(one.difference).mean().item() for one in maps],
        reader=captured,
    )


def _on_cpu(maps: AttentionMaps) -> AttentionMaps:
    if maps.map2 is None or maps.lam is None:
        return AttentionMaps(maps.map1.cpu())
    return AttentionMaps(maps.map1.cpu(), maps.map2.cpu(), maps.lam.detach().float().cpu())
