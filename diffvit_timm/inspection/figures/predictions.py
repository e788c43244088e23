"""Images with what a classifier predicts: the likeliest classes as bars, and whether the prediction is right."""

import textwrap
from collections.abc import Collection, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..colours import BLUE, VERMILION
from .picture import hide_ticks

__all__ = ["PredictedImage", "draw_bars", "plot_predictions"]

LONGEST = 28  # characters of a class name on a bar
CAPTION = 28  # characters in a line above an image
COLUMNS, MANY, MORE_COLUMNS = 4, 16, 6  # images per row; more of them from 17 images on
OTHER = "#777777"


class PredictedImage(NamedTuple):
    """An image, and what a classifier predicts for it.

    Attributes:
        image: RGB or grey image.
        predicted: the likeliest classes with their probabilities, the likeliest first.
        true: the true class with its probability; None if it is not known.
        name: name of the image, which stands above it; may be empty.
        classes: all classes of an image that may have any number of them, with their probabilities; None if it has
            one, which is `true`.
    """

    image: Image.Image
    predicted: Sequence[tuple[str, float]]
    true: tuple[str, float] | None = None
    name: str = ""
    classes: Sequence[tuple[str, float]] | None = None

    @property
    def true_names(self) -> list[str]:
        """The names of the true classes; empty if they are not known, or if there are none."""
        return [name for name, _ in self.classes or ([self.true] if self.true else [])]

    @property
    def is_right(self) -> bool | None:
        """Whether the likeliest class is the true one; None if that is not known."""
        return None if self.true is None else self.predicted[0][0] == self.true[0]


def draw_bars(axis: Axes, predicted: Sequence[tuple[str, float]], true: Collection[str]) -> None:
    """Draw the likeliest classes as bars with their names on them. The bar of a true class is blue and hatched.

    Args:
        axis: axes to draw into.
        predicted: classes with their probabilities, in the order of the bars.
        true: the true classes; none if they are not known.
    """
    for place, (name, share) in enumerate(predicted):
        is_true = name in true
        # Pale, because the names are on them; hatched, so that the colour is not needed to find the true class.
        axis.barh(place, share, color=BLUE if is_true else OTHER, alpha=0.5)
        if is_true:
            axis.barh(place, share, fill=False, edgecolor=BLUE, hatch="////", lw=0, alpha=0.4)
        text = name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."
        weight = "bold" if is_true else "normal"
        axis.text(0.02, place, f"{text} {share:.0%}", va="center", fontsize=7, fontweight=weight)
    axis.set_xlim(0, 1)
    axis.set_ylim(len(predicted) - 0.5, -0.5)
    hide_ticks(axis)
    axis.spines[:].set_color("0.8")


def plot_predictions(cases: Sequence[PredictedImage], title: str) -> Figure:
    """Plot a grid of images, each above the bars of its likeliest classes.

    A right image has a check mark and a thin frame; a wrong one has a cross, its true class and a thick, dashed frame.
    An image that may have any number of classes has neither; above it are those of its classes that have no bar.

    Args:
        cases: images, at least one.
        title: title of the figure, which names the model and how the images were chosen.
    """
    columns = min(len(cases), COLUMNS if len(cases) <= MANY else MORE_COLUMNS)
    lines = -(-len(cases) // columns)
    bars = 0.17 * max(len(case.predicted) for case in cases)  # inches
    caption = 0.16 * (1 + max(_caption(case).count("\n") for case in cases))
    width = max(2.1 * columns, 5.5)  # the title needs 5.5
    figure = Figure(figsize=(width, lines * (2.0 + bars + caption) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10, wrap=True)
    axes = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[1.9, bars] * lines)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, case in enumerate(cases):
        line, column = divmod(place, columns)
        picture, below = axes[2 * line, column], axes[2 * line + 1, column]
        picture.set_axis_on()
        picture.imshow(case.image, cmap="gray" if case.image.mode == "L" else None)
        hide_ticks(picture)
        picture.set_anchor("S")  # close to its bars
        picture.set_title(_caption(case), fontsize=8)
        _frame(picture, case.is_right)
        below.set_axis_on()
        draw_bars(below, case.predicted, case.true_names)
    return figure


def _caption(case: PredictedImage) -> str:
    """Return the lines above an image: its name, and whether the prediction is right."""
    lines = [case.name] if case.name else []
    if case.is_right:
        lines.append("✓ right")
    elif case.true is not None:
        lines.append(f"✗ wrong; true: {case.true[0]} ({case.true[1]:.0%})")
    elif case.classes is not None:
        shown = {name for name, _ in case.predicted}
        others = [f"{name} ({share:.0%})" for name, share in case.classes if name not in shown]
        lines.append(f"also has {', '.join(others)}" if others else "" if case.classes else "has no class")
    return "\n".join(textwrap.fill(line, CAPTION) for line in lines)


def _frame(axis: Axes, is_right: bool | None) -> None:
    """Frame an image; the styles differ not only in colour."""
    styles = {True: (BLUE, 1.5, "solid"), False: (VERMILION, 3.0, "dashed"), None: (OTHER, 0.8, "solid")}
    colour, width, style = styles[is_right]
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=width, linestyle=style)
