"""Where on the photograph a model looked: its resize and crop undone."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torchvision import transforms

__all__ = ["Box", "patched_box", "visible_box"]


class Box(NamedTuple):
    """A rectangle on an image, in its pixels; (0, 0) is the upper left corner of the upper left pixel."""

    left: float
    top: float
    right: float
    bottom: float


def visible_box(size: tuple[int, int], transform: transforms.Compose) -> Box:
    """The part of an image that a transform shows to the model; beyond the image where the transform pads.

    The transform itself is asked: images whose pixels are their own coordinates go through its geometric steps.

    Args:
        size: width and height of the image, in pixels.
        transform: of timm.data.create_transform, for evaluation.

    Raises:
        ValueError: so long an image that the transform leaves a line of it.
    """
    width, height = size
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    steps = [_unfilled(step) for step in transform.transforms if not _is_of_tensors(step)]
    columns, rows = _through(steps, columns), _through(steps, rows)
    left, right = _ends(columns[len(columns) // 2])
    top, bottom = _ends(rows[:, rows.shape[1] // 2])
    return Box(left, top, right, bottom)


def patched_box(size: tuple[int, int], transform: transforms.Compose, patch_embed: Any) -> Box:
    """The part of an image that a ViT's patches cover: a `visible_box` without what they leave over of a side.

    Args:
        size, transform: as in `visible_box`.
        patch_embed: of the model, timm's PatchEmbed.

    Raises:
        ValueError: as in `visible_box`.
    """
    left, top, right, bottom = visible_box(size, transform)
    (height, width), (down, across) = patch_embed.img_size, patch_embed.patch_size
    rows, columns = patch_embed.dynamic_feat_size((height, width))
    right, bottom = left + columns * across / width * (right - left), top + rows * down / height * (bottom - top)
    return Box(left, top, right, bottom)


def _is_of_tensors(step: Callable[[Any], Any]) -> bool:
    """Whether a step makes or takes tensors: it comes after those that move pixels."""
    return type(step).__name__ in ("MaybeToTensor", "ToTensor", "MaybePILToTensor", "PILToTensor", "Normalize")


def _unfilled(step: Any) -> Any:
    """A padding step whose border has one channel, as the coordinates have."""
    if hasattr(step, "fill"):
        step = copy.copy(step)
        step.fill = 0
    return step


def _through(steps: list, coordinates: np.ndarray) -> np.ndarray:
    image = Image.fromarray(coordinates.astype(np.float32))
    for step in steps:
        image = step(image)
    return np.asarray(image, dtype=float)


def _ends(line: np.ndarray) -> tuple[float, float]:
    """Where a line of coordinates begins and ends, from two of its middle, which no border has bent."""
    inside = np.flatnonzero(line)  # padding is 0
    if len(inside) < 2:
        raise ValueError("the image is less than two pixels wide or high after the transform")
    quarter = (len(inside) - 1) // 4
    first, second = inside[quarter], inside[-1 - quarter]
    scale = (line[second] - line[first]) / (second - first)
    start = line[first] - scale * (first + 0.5)
    return float(start), float(start + scale * len(line))
