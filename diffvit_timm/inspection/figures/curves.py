"""Curves: lambda and head statistics over the layers, deletion and insertion over the patches."""

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t

from ..colours import LINES
from ..perturbation import Curve, area_under
from ..saving import legend_label
from ..statistics import HeadStatistics

__all__ = ["plot_faithfulness", "plot_lambdas", "plot_statistics"]


def plot_lambdas(models: Mapping[str, np.ndarray], title: str) -> Figure:
    """Plot lambda over the layers, with one line per model.

    Args:
        models: name of each model -> its lambdas, (L,), or (L, n) for n heads or tokens. The line of the latter is
            their mean without NaN, and its band is one standard deviation wide on each side.
        title: title of the figure.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for colour, (name, lam) in zip(itertools.cycle(LINES), models.items(), strict=False):
        lam = lam.reshape(len(lam), -1)
        mean, deviation = np.nanmean(lam, axis=1), np.nanstd(lam, axis=1)
        axis.plot(mean, "o-", color=colour, label=legend_label(name), ms=4)
        if lam.shape[1] > 1:
            axis.fill_between(range(len(lam)), mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)
    axis.axhline(0, color="black", lw=0.6)
    axis.set_xlabel("Layer")
    axis.set_ylabel("Lambda")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.set_title(title)
    figure.legend(loc="outside lower center", fontsize=8)  # inside, it could hide a line
    return figure


def plot_statistics(models: Mapping[str, HeadStatistics], title: str) -> Figure:
    """Plot entropy, distance and prefix share over the layers: one dot per head, one line per model through its means.

    Args:
        models: name of each model -> its statistics, from `head_statistics`.
        title: title of the figure.
    """
    labels = ("Entropy (nats)", "Distance (pixels)", "Attention to prefix tokens (share)")
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    figure.suptitle(title, wrap=True)
    coloured = list(zip(models.items(), itertools.cycle(LINES), strict=False))
    axes = figure.subplots(1, 3)
    for panel, (axis, label) in enumerate(zip(axes, labels, strict=True)):
        for number, ((name, statistics), colour) in enumerate(coloured):
            values = statistics[panel].numpy()  # (L, H)
            # Shift the models sideways, so that their dots do not hide each other.
            layers = np.arange(len(values)) + 0.12 * (number - (len(models) - 1) / 2)
            axis.scatter(np.repeat(layers, values.shape[1]), values.ravel(), s=10, color=colour, alpha=0.5, lw=0)
            axis.plot(layers, np.nanmean(values, axis=1), color=colour, label=legend_label(name))
        axis.set_ylim(bottom=0)
        axis.set_xlabel("Layer")
        axis.set_ylabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(models)), fontsize=8
    )
    return figure


def plot_faithfulness(curves: Mapping[Curve, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Plot the probability of the class over the share of patches that were deleted or inserted.

    The lines are means over the images, and the bands are 95 % confidence intervals of the means (Student's t).

    Args:
        curves: kind of curve -> name of each method that draws heat maps -> its curves, (images, steps + 1).
        title: title of the figure.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(title, wrap=True)
    notes = {"deletion": "lower is better", "insertion": "higher is better"}
    for axis, (kind, methods) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for colour, (name, curve) in zip(itertools.cycle(LINES), methods.items(), strict=False):
            n, share = len(curve), np.linspace(0, 1, curve.shape[1])
            mean = curve.mean(axis=0)
            half = t.ppf(0.975, n - 1) * curve.std(axis=0, ddof=1) / n**0.5 if n > 1 else np.zeros_like(mean)
            area = area_under(torch.from_numpy(mean)).item()
            axis.plot(share, mean, color=colour, label=f"{name}: area {area:.3f}")
            axis.fill_between(share, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
        axis.set_xlabel(f"Share of patches {'deleted' if kind == 'deletion' else 'inserted'}, hottest first")
        axis.set_ylabel("Probability of the class")
        axis.set_title(f"{kind.capitalize()} ({notes[kind]})")
        axis.grid(alpha=0.3)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8)  # below: bands fill the plot
    return figure
