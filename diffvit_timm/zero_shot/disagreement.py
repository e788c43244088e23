"""Disagreement of classifiers of the same classes: how often they differ, and on which images only one is right."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..inspection.colours import AMOUNT
from ..inspection.figures.picture import hide_ticks
from ..inspection.figures.predictions import draw_bars

__all__ = ["agreement", "plot_agreement", "plot_wins", "top_k", "wins"]

BARS = 5  # likeliest classes per classifier


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Compute the top-k accuracy, between 0 and 1.

    Args:
        logits: scores of the images, (n, classes).
        labels: classes of the images, (n,).
        k: number of likeliest classes among which the label must be.
    """
    return float((np.argsort(-logits, axis=1, kind="stable")[:, :k] == labels[:, None]).any(axis=1).mean())


def agreement(predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute the share of images on which two classifiers predict the same class.

    Args:
        predictions: name of each classifier -> its predicted classes, (n,).

    Returns:
        The shares of all pairs, (classifiers, classifiers).
    """
    columns = list(predictions.values())
    return np.array([[np.mean(one == other) for other in columns] for one in columns])


def wins(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the images that only one of two classifiers predicts correctly.

    Args:
        first, second: predicted classes of each classifier, (n,).
        labels: classes of the images, (n,).

    Returns:
        The indices of the images that only the first gets right, and of those that only the second gets right.
    """
    first_right, second_right = first == labels, second == labels
    return np.flatnonzero(first_right & ~second_right), np.flatnonzero(second_right & ~first_right)


def plot_agreement(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Plot the matrix of `agreement` with its numbers.

    Args:
        matrix: shares, (classifiers, classifiers).
        names: names of the classifiers.
        title: title of the figure.
    """
    figure = Figure(figsize=(3.6 + 1.3 * len(names), 2.4 + 1.0 * len(names)), layout="compressed")
    axis = figure.subplots()
    shown = axis.imshow(matrix, cmap=AMOUNT, vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(matrix):
        axis.text(column, row, f"{value:.1%}", ha="center", va="center", color="black" if value > 0.5 else "white")
    lines = [textwrap.fill(name, 22) for name in names]
    axis.set_xticks(range(len(names)), lines, rotation=20, ha="right")
    axis.set_yticks(range(len(names)), lines)
    axis.set_title(title)
    figure.colorbar(shown, ax=axis, shrink=0.8).set_label("Share of images with the same prediction")
    return figure


def _bars(axis: Axes, probabilities: np.ndarray, label: int, names: Sequence[str], model: str) -> None:
    """Draw the five likeliest classes as bars."""
    best = np.argsort(-probabilities, kind="stable")[:BARS]
    best = best[probabilities[best] > 0]  # a class that not all classifiers know has no probability
    draw_bars(axis, [(names[index], probabilities[index]) for index in best], [names[label]])
    axis.set_ylim(BARS - 0.4, -0.6)  # equally many places, also if there are fewer classes
    axis.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"], fontsize=6)
    axis.set_xlabel(textwrap.fill(f"probability by {model}", 40), fontsize=7)


def plot_wins(
    images: Sequence[Image.Image],
    labels: Sequence[int],
    probabilities: Mapping[str, np.ndarray],
    names: Sequence[str],
    title: str,
) -> Figure:
    """Plot one row per image: the image, and the five likeliest classes of each classifier, whose axis has its name.

    Args:
        images: images to show.
        labels: classes of the images.
        probabilities: name of each classifier -> its probabilities, (images, classes).
        names: class names.
        title: title of the figure.
    """
    rows, columns = max(1, len(images)), 1 + len(probabilities)
    figure = Figure(figsize=(1.9 + 2.4 * len(probabilities), 1.6 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False)
    if not images:
        for axis in axes[0]:
            axis.set_axis_off()
        axes[0, 0].text(0, 0.5, "No images")
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        axes[row, 0].imshow(image, cmap="gray" if image.mode == "L" else None)
        hide_ticks(axes[row, 0])
        axes[row, 0].set_title(textwrap.fill(names[label], 32), fontsize=7)
        for axis, (name, values) in zip(axes[row, 1:], probabilities.items(), strict=True):
            _bars(axis, values[row], label, names, name)
    return figure
