"""Pictures of a comparison under corruptions: accuracy over severity, and what the corruptions look like."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..data.corruptions import corrupt
from ..inspection.colours import LINES
from ..inspection.figures.picture import hide_ticks
from .robustness import CLEAN, MEAN, Condition

__all__ = ["draw_accuracies", "plot_corruptions", "plot_robustness"]

COLUMNS = 4  # panels per row


def plot_robustness(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Plot the accuracy over the severity, with one panel per corruption and one line per network.

    A bar is a 95 % interval. The severity 0 is the clean images.

    Args:
        rows: result of `robustness_rows`.
        path: PNG file to write.
        title: title of the figure.
    """
    corruptions = [name for name in dict.fromkeys(row["corruption"] for row in rows) if name not in (CLEAN[0], MEAN[0])]
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = -(-len(corruptions) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 1.2 + 2.4 * lines), layout="constrained")
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(lines, COLUMNS, squeeze=False, sharey=True)
    for place, (axis, corruption) in enumerate(itertools.zip_longest(axes.flat, corruptions)):
        if corruption is None:
            axis.set_axis_off()
            continue
        for number, (model, colour) in enumerate(zip(models, itertools.cycle(LINES), strict=False)):
            own = [row for row in rows if row["model"] == model and row["corruption"] in (CLEAN.corruption, corruption)]
            draw_accuracies(axis, own, "severity", colour, 0.06 * (number - (len(models) - 1) / 2))
        axis.set_title(corruption.replace("_", " "), fontsize=10)
        axis.set_xticks(sorted({row["severity"] for row in rows}))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(alpha=0.3)
        if place + COLUMNS >= len(corruptions):  # no panel below
            axis.set_xlabel("Severity (0: clean)")
    figure.supylabel("Accuracy (top-1)", fontsize=10)
    figure.legend(axes[0, 0].get_lines(), models, loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=120)


def draw_accuracies(axis: Axes, rows: Sequence[Mapping[str, Any]], place: str, colour: str, shift: float) -> None:
    """Draw the accuracies of one network, with their intervals, over the column `place` of its rows.

    They are shifted sideways, so that the bars of several networks do not hide each other.
    """
    places = np.array([row[place] for row in rows]) + shift
    low, accuracy, high = (np.array([row[key] for row in rows]) for key in ("low", "accuracy", "high"))
    axis.plot(places, accuracy, "o-", color=colour, ms=3, lw=1.2)
    axis.vlines(places, low, high, color=colour, lw=1, alpha=0.6)


def plot_corruptions(pixels: np.ndarray, listed: Sequence[Condition], path: Path, title: str) -> None:
    """Draw one image under all conditions, with one row per corruption and one column per severity.

    Args:
        pixels: image, (H, W, 1) or (H, W, 3), uint8.
        listed: conditions; CLEAN is the first column.
        path: PNG file to write.
        title: title of the figure.
    """
    corruptions, severities = (
        list(dict.fromkeys(values)) for values in zip(*(c for c in listed if c != CLEAN), strict=True)
    )
    columns = 1 + len(severities)
    figure = Figure(figsize=(1.6 * columns + 1.2, 1.6 * len(corruptions) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10, wrap=True)
    axes = figure.subplots(len(corruptions), columns, squeeze=False)
    for line, corruption in zip(axes, corruptions, strict=True):
        line[0].set_ylabel(corruption.replace("_", "\n"), fontsize=8)
        images = [pixels, *(corrupt(pixels, corruption, severity) for severity in severities)]
        for axis, image in zip(line, images, strict=True):
            hide_ticks(axis)
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)  # colour images ignore the colour map
    for axis, name in zip(axes[0], ["clean", *(f"severity {severity}" for severity in severities)], strict=True):
        axis.set_title(name, fontsize=8)
    figure.savefig(path, dpi=120)
