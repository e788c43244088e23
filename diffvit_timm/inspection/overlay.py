"""The part of an image that a model sees, in the pixels of the original image."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torchvision import transforms

from .layout import patch_grid

__all__ = ["Box", "patched_box", "visible_box"]


class Box(NamedTuple):
    """A rectangle on an image, in pixels. (0, 0) is the upper left corner of the upper left pixel."""

    left: float
    top: float
    right: float
    bottom: float


def visible_box(size: tuple[int, int], transform: transforms.Compose) -> Box:
    """Return the part of an image that a transform shows to the model.

    If the transform pads, the box reaches beyond the image.

    The box is measured: images whose pixel values are their own coordinates go through the geometric steps of the
    transform. It is therefore right for every crop mode of timm.

    Args:
        size: width and height of the image, in pixels.
        transform: evaluation transform from timm.data.create_transform.

    Raises:
        ValueError: the transformed image is less than two pixels wide or high.
    """
    return _extent_of(*_transformed_coordinates(size, transform))


def _extent_of(columns: np.ndarray, rows: np.ndarray) -> Box:
    """Return the box of transformed coordinates: the column and the row of each pixel, (height, width) each."""
    # Padding does not cover the middle row and the middle column.
    left, right = _extent(columns[len(columns) // 2])
    top, bottom = _extent(rows[:, rows.shape[1] // 2])
    return Box(left, top, right, bottom)


def patched_box(size: tuple[int, int], transform: transforms.Compose, embedding: Any) -> Box:
    """Return the part of an image that the patches of a ViT cover.

    It is the `visible_box` without the pixels at the right and bottom that do not fill a patch.

    Args:
        size, transform: as in `visible_box`.
        embedding: module that divides images into patches, from `patch_embedding`.

    Raises:
        ValueError: as in `visible_box`.
    """
    columns, rows = _transformed_coordinates(size, transform)
    left, top, right, bottom = _extent_of(columns, rows)
    height, width = columns.shape
    patch_height, patch_width = embedding.patch_size
    patches_down, patches_across = patch_grid(embedding, (height, width))
    right = left + patches_across * patch_width / width * (right - left)
    bottom = top + patches_down * patch_height / height * (bottom - top)
    return Box(left, top, right, bottom)


def _transformed_coordinates(size: tuple[int, int], transform: transforms.Compose) -> tuple[np.ndarray, np.ndarray]:
    """Send images of their own coordinates through a transform: the column and the row of each pixel that it shows."""
    width, height = size
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)  # (height, width) each
    steps = [_with_zero_fill(step) for step in transform.transforms if not _is_tensor_step(step)]
    return _apply(steps, columns), _apply(steps, rows)


def _is_tensor_step(step: Callable[[Any], Any]) -> bool:
    """Return whether a step makes or takes tensors. Such steps follow the geometric ones."""
    return type(step).__name__ in ("MaybeToTensor", "ToTensor", "MaybePILToTensor", "PILToTensor", "Normalize")


def _with_zero_fill(step: Any) -> Any:
    """Let a padding step fill with a single 0, because the coordinate images have one channel."""
    if hasattr(step, "fill"):
        step = copy.copy(step)
        step.fill = 0
    return step


def _apply(steps: list, coordinates: np.ndarray) -> np.ndarray:
    image = Image.fromarray(coordinates.astype(np.float32))
    for step in steps:
        image = step(image)
    return np.asarray(image, dtype=float)


def _extent(line: np.ndarray) -> tuple[float, float]:
    """Return the coordinates at the start and end of a line of transformed coordinates.

    They are extrapolated from two pixels well inside the line, because interpolation distorts the values at a border.
    """
    inside = np.flatnonzero(line)  # padding is 0, and coordinates start at 0.5
    if len(inside) < 2:
        raise ValueError("the image is less than two pixels wide or high after the transform")
    quarter = (len(inside) - 1) // 4
    first, second = inside[quarter], inside[-1 - quarter]
    scale = (line[second] - line[first]) / (second - first)
    start = line[first] - scale * (first + 0.5)
    return float(start), float(start + scale * len(line))
