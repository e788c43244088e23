"""Learning curves of several runs: how their losses fall with the updates, and what accuracy their sizes reach."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from ..inspection.colours import ATTENTION, LINES
from ..inspection.saving import legend_label, save_figure

__all__ = ["LearningCurve", "plot_accuracies", "plot_losses", "read_losses"]

Loss = Literal["train_loss", "val_loss"]
STYLES = ("-", "--", ":", "-.")  # of lines whose colours repeat
PANELS = 3  # per row
LONG_NAME = 36  # characters; such names stand below each other in a legend
WINDOW = 50  # a curve of more points is drawn pale, and over it the mean of every 1/50 of its points


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """One finished run.

    Attributes:
        name: name of the run in legends.
        dataset: name of the dataset.
        attn: 'diff', 'diff_v2' or 'plain'.
        parameters: number of parameters of the model.
        accuracy: top-1 accuracy on the test split, in [0, 1].
        losses: train_loss and val_loss -> pairs of an update, counted from 1, and the loss after it, in nats.
    """

    name: str
    dataset: str
    attn: str
    parameters: int
    accuracy: float
    losses: dict[Loss, list[tuple[int, float]]]


def read_losses(run: Path) -> dict[Loss, list[tuple[int, float]]]:
    """Read the losses of a run from its metrics.jsonl, as in `LearningCurve`."""
    losses: dict[Loss, list[tuple[int, float]]] = {"train_loss": [], "val_loss": []}
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name, found in losses.items():
            if name in row:
                found.append((row["step"], row[name]))
    return losses


def plot_losses(curves: Sequence[LearningCurve], loss: Loss, path: Path, title: str) -> None:
    """Plot a loss over the updates, with one line per run and one panel per dataset.

    Args:
        curves: the runs.
        loss: the loss to plot.
        path: PNG file to write.
        title: title of the figure.
    """
    datasets = list(dict.fromkeys(curve.dataset for curve in curves))
    lines = max(sum(curve.dataset == dataset for curve in curves) for dataset in datasets)
    columns, rows = min(PANELS, len(datasets)), math.ceil(len(datasets) / PANELS)
    figure = Figure(figsize=(max(8.0, 6.0 * columns), rows * (4.6 + 0.2 * lines)), layout="constrained")
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(datasets) :]:
        axis.remove()
    for axis, dataset in zip(axes, datasets, strict=False):
        for number, curve in enumerate(curve for curve in curves if curve.dataset == dataset):
            style = {"color": LINES[number % len(LINES)], "ls": STYLES[number // len(LINES) % len(STYLES)]}
            points = curve.losses[loss]
            if len(points) > WINDOW:
                axis.plot(*zip(*points, strict=True), color=style["color"], lw=0.8, alpha=0.25)
                points = _moving_mean(points, len(points) // WINDOW)
            marker = "o" if len(points) <= WINDOW else None  # a single point has no line
            axis.plot(*zip(*points, strict=True), **style, lw=1.6, marker=marker, ms=3, label=legend_label(curve.name))
        axis.set_title(dataset)
        axis.set_xlabel("Batches")
        axis.set_ylabel("Loss (nats)")
        axis.grid(alpha=0.3)
        is_short = max(len(curve.name) for curve in curves) < LONG_NAME
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2 if is_short else 1)
    save_figure(figure, path)


def _moving_mean(points: list[tuple[int, float]], width: int) -> list[tuple[int, float]]:
    """Return the last update and the mean loss of every `width` points in a row."""
    parts = [points[end - width : end] for end in range(width, len(points) + 1)]
    return [(part[-1][0], sum(loss for _, loss in part) / width) for part in parts]


def plot_accuracies(curves: Sequence[LearningCurve], path: Path, title: str) -> None:
    """Plot the test accuracy in % over millions of parameters, with one line per kind of attention.

    Args:
        curves: runs on one dataset.
        path: PNG file to write.
        title: title of the figure.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    figure.suptitle(title, wrap=True)
    axis = figure.subplots()
    for kind in (kind for kind in ATTENTION if any(curve.attn == kind for curve in curves)):
        own = [curve for curve in curves if curve.attn == kind]
        sizes = sorted({curve.parameters for curve in own})
        axis.scatter(
            [curve.parameters / 1e6 for curve in own], [100 * curve.accuracy for curve in own],
            s=24, color=ATTENTION[kind], lw=0,
        )  # fmt: skip
        reached = [[curve.accuracy for curve in own if curve.parameters == size] for size in sizes]
        means = [100 * sum(accuracies) / len(accuracies) for accuracies in reached]
        axis.plot([size / 1e6 for size in sizes], means, color=ATTENTION[kind], label=kind)
    axis.set_xlabel("Parameters (millions)")
    axis.set_ylabel("Test accuracy (top-1, %)")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)
