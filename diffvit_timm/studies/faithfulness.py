"""Deletion and insertion curves of several kinds of heat maps on many images, and the area under them.

The kinds are attention of the last layer, rollout, relevance by gradients, and random maps as the baseline. The curves
follow the class that the network predicts. See inspection/perturbation.py for how they are made.
"""

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from ..data.loading import image_batches
from ..inspection.perturbation import Curve, area_under, perturbation_curve
from ..inspection.rollout import heat_maps
from .results import mean_interval

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["area_summary", "faithfulness_curves", "measure_faithfulness"]


def faithfulness_curves(
    model: Any, images: Tensor, steps: int, generator: torch.Generator
) -> dict[Curve, dict[str, Tensor]]:
    """Compute the curves of all kinds of heat maps for a batch of images.

    Args:
        model: ViT with a head, in evaluation mode.
        images: normalised images, (B, C, H, W).
        steps: number of steps in which all patches change.
        generator: random generator of the random heat maps.

    Returns:
        Kind of curve -> name of each kind of heat map -> its curves, (B, steps + 1).
    """
    heat = heat_maps(model, images)
    kinds = {
        "last layer": heat.last_layer,
        "rollout": heat.rollout,
        "for the prediction, by gradients": heat.relevance,
        "random": torch.rand(heat.rollout.shape, generator=generator),
    }  # (B, rows, columns) each
    targets = heat.logits.argmax(dim=-1)
    return {
        curve: {name: perturbation_curve(model, images, maps, targets, curve, steps) for name, maps in kinds.items()}
        for curve in get_args(Curve)
    }


def measure_faithfulness(
    model: Any, split: "Dataset", count: int, steps: int = 14, device: str = "cpu", label: str | None = None
) -> dict[Curve, dict[str, np.ndarray]]:
    """Compute the curves of all kinds of heat maps on images of a split.

    Args:
        model: ViT with a head; it is moved to the device and put into evaluation mode.
        split: a stored split of `Splits`.
        count: number of images, drawn at random; every model gets the same ones and the same random heat maps.
        steps: number of steps in which all patches change.
        device: device to compute on.
        label: show progress under this label.

    Returns:
        Kind of curve -> name of each kind of heat map -> its curves, (images, steps + 1).

    Raises:
        InputError: as `image_batches`.
    """
    model.eval().to(device)
    generator = torch.Generator().manual_seed(0)
    parts: dict[Curve, dict[str, list[Tensor]]] = {curve: {} for curve in get_args(Curve)}
    for batch in image_batches(model, split, count, label):
        for curve, kinds in faithfulness_curves(model, batch.to(device), steps, generator).items():
            for name, values in kinds.items():
                parts[curve].setdefault(name, []).append(values.cpu())
    return {curve: {name: torch.cat(p).numpy() for name, p in kinds.items()} for curve, kinds in parts.items()}


def area_summary(curves: np.ndarray) -> dict[str, float | int | None]:
    """Summarise the area under the curves of images.

    Args:
        curves: curves of one kind, (images, steps + 1).

    Returns:
        Mean `area`, `half_interval` (half the width of its 95 % confidence interval, None for a single image), and the
        number of `images`.
    """
    areas = area_under(torch.from_numpy(curves)).tolist()
    area, half = mean_interval(areas)
    return {"area": area, "half_interval": half, "images": len(areas)}
