"""Images with their true masks and the masks that networks predict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..saving import legend_label, save_figure
from .picture import hide_ticks

__all__ = ["plot_segmentations"]

MOST_NAMES = 24  # in the legend


def plot_segmentations(
    images: Sequence[Any],
    masks: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
    ignored: int,
    title: str,
    path: Path,
) -> None:
    """Draw one row per image: the image, and a mask per column.

    Args:
        images: PIL images.
        masks: title of a column, such as 'true' or the name of a network -> masks of class indices, (H, W) each.
        class_names: names of the classes, in the order of the indices.
        ignored: value of pixels without a class, which are white.
        title: title of the figure.
        path: PNG file to write.
    """
    count = len(class_names)
    base = matplotlib.colormaps["tab20"] if count <= 20 else matplotlib.colormaps["turbo"].resampled(count)
    colours = [base(i % base.N) for i in range(count)]
    columns = 1 + len(masks)
    figure = Figure(figsize=(2.5 * columns, 1.4 + 2.1 * len(images)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        axes[row, 0].imshow(image)
        for axis, own in zip(axes[row, 1:], masks.values(), strict=True):
            shown = np.ma.masked_equal(own[row], ignored)
            axis.imshow(shown, cmap=ListedColormap(colours), vmin=-0.5, vmax=count - 0.5, interpolation="nearest")
    for axis, name in zip(axes[0], ["image", *masks], strict=True):
        axis.set_title(name, fontsize=9)
    for axis in axes.flat:
        hide_ticks(axis)
    used = sorted({int(c) for own in masks.values() for mask in own for c in np.unique(mask)} - {ignored})[:MOST_NAMES]
    patches = [Patch(color=colours[c], label=legend_label(class_names[c])) for c in used]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(used)), fontsize=8)
    save_figure(figure, path)
