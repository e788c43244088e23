"""The input image of a figure, how it is drawn, and how a figure is saved."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from ..overlay import Box
from ..saving import save_figure

__all__ = ["Picture", "draw_picture", "hide_ticks", "label_colour_bar", "padded_figure", "save"]


class Picture(NamedTuple):
    """An image before the model's transform, and the part of it that the model sees.

    Attributes:
        image: RGB or grey image.
        box: part of the image that the model sees, in pixels.
        name: title of the image's panel.
    """

    image: Image.Image
    box: Box
    name: str


def save(figure: Figure, path: Path, **arrays: Any) -> None:
    """Write a figure as a PNG, and the numbers that it shows as an .npz file of the same name.

    Args:
        figure: figure to save.
        path: path of the PNG.
        **arrays: arrays of the .npz file.
    """
    save_figure(figure, path)
    np.savez_compressed(path.with_suffix(".npz"), **arrays)


def hide_ticks(axis: Axes) -> None:
    """Remove the ticks of both axes."""
    axis.set_xticks([])
    axis.set_yticks([])


def label_colour_bar(bar: Colorbar, label: str) -> None:
    """Label a colour bar in the font size of the panels' titles."""
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def padded_figure(width: float, height: float, compress: bool = False) -> Figure:
    """Return a figure with padding at the left and right edges, for labels beside square panels.

    Args:
        width, height: size in inches.
        compress: whether to move the panels together, which needs panels of one shape.
    """
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, compress=compress))


def draw_picture(axis: Axes, picture: Picture) -> None:
    """Draw an image with a frame around the part that the model sees."""
    hide_ticks(axis)
    axis.imshow(picture.image, cmap="gray" if picture.image.mode == "L" else None)
    left, top, right, bottom = picture.box
    # A black line on a wider white one is visible on dark and on bright images.
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="white", lw=1.5)
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="black", lw=0.8)
    axis.set_xlim(0, picture.image.width)
    axis.set_ylim(picture.image.height, 0)
