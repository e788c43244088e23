"""Scaling laws: the test loss as a power law of the parameters or FLOPs of the model, with its interval and a figure.

Paper: `Kaplan et al. 2020` - https://arxiv.org/abs/2001.08361, L(N) = a N^-b
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from scipy.stats import f, t

from ..inspection.colours import ATTENTION
from ..inspection.saving import save_figure

__all__ = ["MIN_SIZES", "LossRatio", "Point", "PowerLaw", "fit_power_law", "loss_ratio", "plot_scaling"]

MIN_SIZES = 4  # model sizes per fit: the two parameters of a power law fit fewer sizes too easily


@dataclasses.dataclass(frozen=True)
class Point:
    """One finished training.

    Attributes:
        size: name of the model size.
        attn: 'diff', 'diff_v2' or 'plain'.
        seed: seed of the training.
        parameters: number of parameters of the model.
        flops: FLOPs of a forward pass for one image; a multiplication and an addition count as two.
        loss: cross-entropy on the test split, in nats.
        accuracy: top-1 accuracy on the test split, in [0, 1].
    """

    size: str
    attn: str
    seed: int
    parameters: int
    flops: int
    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class LossRatio:
    """Loss divided by the loss of plain attention, at equal parameters or FLOPs.

    Attributes:
        ratio: below 1 if the loss is smaller than that of plain attention.
        interval: 95 % confidence interval of the ratio over seeds; None with one run per size and attention.
    """

    ratio: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """Power law, loss = scale * x^-exponent.

    Attributes:
        scale, exponent: least-squares fit of the logarithms.
        interval: 95 % confidence interval of the exponent over seeds; None with one run per size.
        misfit: p-value of the F test for lack of fit: the probability that the variation between seeds alone puts the
            means of the sizes this far from the law. None with one run per size.
    """

    scale: float
    exponent: float
    interval: tuple[float, float] | None
    misfit: float | None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scale * x**-self.exponent


def fit_power_law(points: Sequence[Point], axis: str) -> PowerLaw | None:
    """Fit a power law of the loss.

    Args:
        points: runs with one kind of attention.
        axis: attribute of `Point` that is x, 'parameters' or 'flops'.

    Returns:
        The power law, or None with fewer than MIN_SIZES sizes.
    """
    if _sizes(points, axis) < MIN_SIZES:
        return None
    x, loss = _logarithms(points, axis), _logarithms(points, "loss")
    (intercept, slope), errors = _least_squares(points, np.stack([np.ones(len(points)), x]))
    interval = (-slope - errors[1], -slope + errors[1]) if errors else None
    # F test for lack of fit: deviation of the size means from the law, relative to the variation between seeds.
    means = np.array([loss[x == value].mean() for value in x])  # for each point the mean of its size
    between, within = len(set(x)) - 2, len(x) - len(set(x))  # degrees of freedom
    misfit = None
    if spread := np.square(loss - means).sum():
        ratio = np.square(means - intercept - slope * x).sum() / between / (spread / within)
        misfit = float(f.sf(ratio, between, within))
    return PowerLaw(float(np.exp(intercept)), -slope, interval, misfit)


def loss_ratio(points: Sequence[Point], axis: str, attn: str = "diff") -> LossRatio | None:
    """Compare the loss of one kind of attention with that of plain attention at equal size.

    Both get a power law with the same exponent: log L = a + b log x for plain attention, and log L = a + b log x + c
    for `attn`. The ratio is exp(c).

    Args:
        points: runs with `attn` and with 'plain'; other runs are ignored. Their sizes need not be equal.
        axis: attribute of `Point` that is x, 'parameters' or 'flops'.
        attn: the kind of attention to compare with 'plain'.

    Returns:
        The ratio, or None if either kind has fewer than MIN_SIZES sizes.
    """
    both = [point for point in points if point.attn in (attn, "plain")]
    if any(_sizes([point for point in both if point.attn == kind], axis) < MIN_SIZES for kind in (attn, "plain")):
        return None
    is_attn = np.array([float(point.attn == attn) for point in both])
    (_, _, c), errors = _least_squares(both, np.stack([np.ones(len(both)), _logarithms(both, axis), is_attn]))
    interval = (float(np.exp(c - errors[2])), float(np.exp(c + errors[2]))) if errors else None
    return LossRatio(float(np.exp(c)), interval)


def _sizes(points: Sequence[Point], axis: str) -> int:
    return len({getattr(point, axis) for point in points})


def _logarithms(points: Sequence[Point], attribute: str) -> np.ndarray:
    return np.log([float(getattr(point, attribute)) for point in points])


def _least_squares(points: Sequence[Point], terms: np.ndarray) -> tuple[list[float], list[float] | None]:
    """Fit the log loss by least squares.

    The intervals describe the variation between seeds: Student's t, with the variance pooled over the groups of runs
    that share size and attention. A bootstrap with three seeds per size covers the true value in only 81 % of the cases
    instead of 95 %, because it cannot see beyond these seeds.

    Args:
        points: the runs.
        terms: (coefficients, points), values of the regressors.

    Returns:
        The coefficients, and half the width of the 95 % confidence interval of each; None if no group has two runs.
    """
    loss = _logarithms(points, "loss")
    inverse = np.linalg.pinv(terms.T)
    groups: dict[tuple[str, str], list[float]] = {}
    for point, value in zip(points, loss, strict=True):
        groups.setdefault((point.size, point.attn), []).append(value)
    coefficients = (inverse @ loss).tolist()
    freedom = len(points) - len(groups)
    if not freedom:
        return coefficients, None
    variance = sum(len(group) * np.var(group) for group in groups.values()) / freedom
    return coefficients, (t.ppf(0.975, freedom) * np.sqrt(variance * (inverse**2).sum(axis=1))).tolist()


def plot_scaling(points: Sequence[Point], path: Path, title: str) -> None:
    """Plot the test loss against parameters and against FLOPs, with logarithmic axes.

    Every run is a dot. A line shows the power law, or the means of the sizes if there are too few sizes for a law.

    Args:
        points: runs with all sizes and kinds of attention.
        path: PNG file to write.
        title: title of the figure.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, attribute, label in zip(
        axes, ("parameters", "flops"), ("Parameters", "FLOPs of a forward pass for one image"), strict=True
    ):
        for kind in (kind for kind in ATTENTION if any(point.attn == kind for point in points)):
            own = sorted((p for p in points if p.attn == kind), key=lambda p: getattr(p, attribute))
            x = np.array([getattr(point, attribute) for point in own], dtype=float)
            loss = np.array([point.loss for point in own])
            axis.scatter(x, loss, s=24, color=ATTENTION[kind], alpha=0.6, lw=0)
            law = fit_power_law(own, attribute)
            if law:
                spread = " ({:.3f} to {:.3f})".format(*law.interval) if law.interval else ""
                axis.plot(x, law(x), color=ATTENTION[kind], label=f"{kind}: exponent {law.exponent:.3f}{spread}")
            else:
                sizes = np.unique(x)
                means = [loss[x == size].mean() for size in sizes]
                axis.plot(sizes, means, color=ATTENTION[kind], label=f"{kind}: means, too few sizes for a law")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    axes[0].set_ylabel("Test loss (nats)")
    save_figure(figure, path)
