"""Heat maps drawn over the images that they belong to."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..colours import AMOUNT
from .picture import Picture, draw_picture, label_colour_bar, padded_figure

__all__ = ["plot_overlays"]


def _wrap(name: str) -> str:
    """Break the title of a panel into lines that are no wider than the panel."""
    return "\n".join(textwrap.fill(line, 30) for line in name.splitlines())


def _draw_heat(axis: Axes, picture: Picture, heat: np.ndarray) -> None:
    """Draw a heat map over the part of the image that the model saw.

    The colours range from 0 to the map's own maximum, which the label below the panel gives.
    """
    draw_picture(axis, picture)
    left, top, right, bottom = picture.box
    maximum = heat.max()
    axis.imshow(
        heat, extent=(left, right, bottom, top), cmap=AMOUNT, vmin=0, vmax=maximum if maximum > 0 else 1, alpha=0.65,
        interpolation="nearest",
    )  # fmt: skip
    axis.set_xlim(0, picture.image.width)  # imshow has set the limits to its own extent
    axis.set_ylim(picture.image.height, 0)
    axis.set_xlabel(f"max = {maximum / heat.mean():.1f} x mean" if heat.mean() > 0 else "zero everywhere", fontsize=8)


def plot_overlays(
    pictures: Sequence[Picture],
    columns: Mapping[str, np.ndarray],
    title: str,
    width: int = 0,
    seen: Mapping[str, Sequence[Picture]] | None = None,
) -> Figure:
    """Plot one row per image: the image itself, then each heat map over it, from 0 to the map's own maximum.

    Args:
        pictures: images; the part that the model sees gets a frame.
        columns: name of each kind of heat map -> its maps, (images, rows, columns), non-negative.
        title: title of the figure.
        width: panels per line, for many kinds of one image. 0 puts all of them on one line.
        seen: name of a kind -> the images as the model of that kind sees them, if it is not the model of `pictures`.
    """
    names = list(columns)
    width = width or len(names) + 1
    lines = -(-(len(names) + 1) // width)  # lines per image, rounded up
    # Panels are 1.8 inches wide. Their height follows the image, and 0.65 inches per row are for labels of two lines.
    aspects = [picture.image.height / picture.image.width for picture in pictures]
    heights = [min(max(aspect, 0.3), 2.0) for aspect in aspects for _ in range(lines)]
    longest = max(_wrap(name).count("\n") for name in (*names, *(picture.name for picture in pictures)))
    labels = 0.65 + 0.13 * max(0, longest - 1)
    figure = padded_figure(2.0 * width + 1.0, 1.8 * sum(heights) + labels * len(heights) + 0.5)
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(len(heights), width, squeeze=False, height_ratios=heights)
    for row, picture in enumerate(pictures):
        panels = axes[row * lines : (row + 1) * lines].ravel()
        draw_picture(panels[0], picture)
        panels[0].set_title(_wrap(picture.name), fontsize=8)
        for axis, name in zip(panels[1:], names, strict=False):
            _draw_heat(axis, (seen or {}).get(name, pictures)[row], columns[name][row])
            axis.set_title(_wrap(name), fontsize=8)
        for axis in panels[len(names) + 1 :]:
            axis.set_axis_off()
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), AMOUNT), ax=axes, shrink=0.6, aspect=30)
    label_colour_bar(bar, "Relative to the\npanel's maximum")
    return figure
