"""Where classifiers of the same classes differ: how often, and on which images one is right and the other wrong."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..inspection.colours import AMOUNT, ATTENTION

__all__ = ["agreement", "plot_agreement", "plot_wins", "top_k", "wins"]


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of the images whose label is among the k likeliest classes; (n, classes) and (n,)."""
    return float((np.argsort(-logits, axis=1, kind="stable")[:, :k] == labels[:, None]).any(axis=1).mean())


def agreement(predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Share of the images on which two classifiers say the same class: (classifiers, classifiers)."""
    columns = list(predictions.values())
    return np.array([[np.mean(one == other) for other in columns] for one in columns])


def wins(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images that the first alone has right, and of those that the second alone has right."""
    right, other = first == labels, second == labels
    return np.flatnonzero(right & ~other), np.flatnonzero(other & ~right)


def plot_agreement(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """The matrix of `agreement`, with its numbers."""
    figure = Figure(figsize=(3.6 + 1.3 * len(names), 2.4 + 1.0 * len(names)), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(matrix, cmap=AMOUNT, vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(matrix):
        axis.text(column, row, f"{value:.1%}", ha="center", va="center", color="black" if value > 0.5 else "white")
    lines = [textwrap.fill(name, 22) for name in names]
    axis.set_xticks(range(len(names)), lines, rotation=20, ha="right")
    axis.set_yticks(range(len(names)), lines)
    axis.set_title(title)
    figure.colorbar(shown, ax=axis, shrink=0.8).set_label("share of images with the same prediction")
    return figure


def _bars(axis: Axes, probabilities: np.ndarray, label: int, names: Sequence[str], title: str) -> None:
    """The five likeliest classes; the right one in another colour."""
    best = np.argsort(-probabilities, kind="stable")[:5]
    colours = [ATTENTION["diff"] if index == label else "#BBBBBB" for index in best]
    axis.barh(range(len(best)), probabilities[best], color=colours)
    for place, index in enumerate(best):
        axis.text(0.02, place, f"{names[index]} {probabilities[index]:.0%}", va="center", fontsize=7)
    axis.set_xlim(0, 1)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.invert_yaxis()
    axis.set_title(title, fontsize=7)


def plot_wins(
    images: Sequence[Image.Image],
    labels: Sequence[int],
    probabilities: Mapping[str, np.ndarray],
    names: Sequence[str],
    title: str,
) -> Figure:
    """A row an image: the image, and the five likeliest classes of each of the classifiers.

    Args:
        images: to show.
        labels: their classes.
        probabilities: of each classifier, (images, classes).
        names: of the classes.
        title: whose wins they are, on what.
    """
    rows, columns = max(1, len(images)), 1 + len(probabilities)
    figure = Figure(figsize=(1.9 + 2.4 * len(probabilities), 1.5 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False)
    if not images:
        for axis in axes[0]:
            axis.set_axis_off()
        axes[0, 0].text(0, 0.5, "none")
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        axes[row, 0].imshow(image, cmap="gray" if image.mode == "L" else None)
        axes[row, 0].set_xticks([])
        axes[row, 0].set_yticks([])
        axes[row, 0].set_title(names[label], fontsize=7)
        for axis, (name, values) in zip(axes[row, 1:], probabilities.items(), strict=True):
            _bars(axis, values[row], label, names, name)
    return figure
