"""Two measures of heat maps on many images: does the network use what they show, and do they show the object?

The kinds are attention of the last layer, rollout, relevance by gradients, and random maps as the baseline. Deletion
and insertion curves follow the class that the network predicts (inspection/perturbation.py). If the images have masks
of their objects, the share of the heat on the object is measured as well (inspection/pointing.py).
"""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..data.loading import image_batches, mask_batches
from ..inspection.perturbation import Curve, area_under, perturbation_curve
from ..inspection.pointing import heat_on_masks
from ..inspection.rollout import heat_maps
from .results import mean_interval

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Faithfulness", "area_summary", "measure_faithfulness", "share_summary"]


class Faithfulness(NamedTuple):
    """Results of `measure_faithfulness`; each name is that of a kind of heat map.

    Attributes:
        curves: kind of curve -> name -> its curves, (images, steps + 1).
        on_object: name -> share of the heat on the object, (images,); empty without masks.
    """

    curves: dict[Curve, dict[str, np.ndarray]]
    on_object: dict[str, np.ndarray]


def measure_faithfulness(
    model: Any, split: "Dataset", steps: int = 14, device: str = "cpu", label: str | None = None
) -> Faithfulness:
    """Measure all kinds of heat maps on the images of a split. Every model gets the same random heat maps.

    Args:
        model: ViT with a head; it is moved to the device and put into evaluation mode.
        split: a stored split of `Splits`; its column 'mask', if it has one, shows the objects.
        steps: number of steps in which all patches change.
        device: device to compute on.
        label: show progress under this label.

    Raises:
        InputError: as `image_batches`.
    """
    model.eval().to(device)
    generator = torch.Generator().manual_seed(0)
    curves: dict[Curve, dict[str, list[Tensor]]] = {curve: {} for curve in get_args(Curve)}
    shares: dict[str, list[Tensor]] = {}
    has_masks = "mask" in split.column_names
    batches: Iterable[Tensor | None] = mask_batches(model, split) if has_masks else itertools.repeat(None)
    for batch, masks in zip(image_batches(model, split, label=label), batches, strict=has_masks):
        images = batch.to(device)
        kinds, targets = _heat_maps(model, images, generator)
        for name, heat in kinds.items():
            for curve, parts in curves.items():
                values = perturbation_curve(model, images, heat, targets, curve, steps)
                parts.setdefault(name, []).append(values.cpu())
            if masks is not None:
                shares.setdefault(name, []).append(heat_on_masks(heat.cpu(), masks))
    return Faithfulness({curve: _joined(parts) for curve, parts in curves.items()}, _joined(shares))


def _heat_maps(model: Any, images: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Return all kinds of heat maps of a batch of images, (B, rows, columns) each, and the predicted classes, (B,)."""
    found = heat_maps(model, images)
    kinds = {
        "last layer": found.last_layer,
        "rollout": found.rollout,
        "for the prediction, by gradients": found.relevance,
        "random": torch.rand(found.rollout.shape, generator=generator),
    }
    return kinds, found.logits.argmax(dim=-1)


def _joined(parts: dict[str, list[Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.cat(values).numpy() for name, values in parts.items()}


def area_summary(curves: np.ndarray) -> dict[str, float | int | None]:
    """Summarise the area under the curves of images.

    Args:
        curves: curves of one kind, (images, steps + 1).

    Returns:
        Mean `area`, `half_interval` (half the width of its 95 % confidence interval, None for a single image), and the
        number of `images`.
    """
    return _summary("area", area_under(torch.from_numpy(curves)).tolist())


def share_summary(shares: np.ndarray) -> dict[str, float | int | None]:
    """Summarise the shares of the heat on the object, (images,), as `area_summary` does, with the mean `share`."""
    return _summary("share", shares.tolist())


def _summary(name: str, values: list[float]) -> dict[str, float | int | None]:
    mean, half = mean_interval(values)
    return {name: mean, "half_interval": half, "images": len(values)}
