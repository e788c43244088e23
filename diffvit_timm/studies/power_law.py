"""How the loss falls with the size of the model: counted FLOPs, a power law with its interval, and the picture.

`Kaplan et al. 2020` - https://arxiv.org/abs/2001.08361, L(N) = a N^-b
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from scipy.stats import f, t
from timm.models import get_model_input_config
from torch.utils.flop_counter import FlopCounterMode

from ..inspection.colours import ATTENTION
from .timing import explicit_maps

__all__ = ["ENOUGH", "LossRatio", "Point", "PowerLaw", "count_flops", "fit_power_law", "loss_ratio", "plot_scaling"]

ENOUGH = 4  # sizes, below which two parameters explain any points


@dataclasses.dataclass(frozen=True)
class Point:
    """One finished training.

    Attributes:
        size: its name.
        attn: 'diff', 'diff_v2' or 'plain'.
        seed: of the training.
        parameters: of the model.
        flops: of one image's forward pass; a multiplication and an addition are two.
        loss: cross-entropy on the test split, nats.
        accuracy: on the test split.
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
    """How much larger the loss is than plain attention's, at equal parameters or FLOPs.

    Attributes:
        ratio: below 1, the loss is smaller.
        interval: 95 % of it, over seeds; None for one run a size and attention.
    """

    ratio: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """loss = scale * x^-exponent.

    Attributes:
        scale, exponent: least squares of the logarithms.
        interval: 95 % of the exponent, over seeds; None for one run a size.
        misfit: p of the F test of lack of fit, how often seeds alone would put the means of the sizes as far from the
            law; None for one run a size.
    """

    scale: float
    exponent: float
    interval: tuple[float, float] | None
    misfit: float | None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scale * x**-self.exponent


def count_flops(model: Any) -> int:
    """Of one image's forward pass, by torch's counter; differential attention by its explicit maps.

    Args:
        model: of timm.create_model; left as it is.
    """
    image = torch.zeros(1, *get_model_input_config(model)["input_size"], device=next(model.parameters()).device)
    # without gradients, as the counter cannot follow a parameter that is expanded
    counted = copy.deepcopy(model).eval().requires_grad_(False)
    # explicit, as the counter does not look into operators that it does not know
    with explicit_maps(counted), FlopCounterMode(display=False) as counter:
        counted(image)
    return counter.get_total_flops()


def fit_power_law(points: Sequence[Point], axis: str) -> PowerLaw | None:
    """The power law of the loss in 'parameters' or 'flops'; None below ENOUGH sizes.

    Args:
        points: of one kind of attention.
        axis: which attribute is x.
    """
    if _sizes(points, axis) < ENOUGH:
        return None
    x, loss = _logarithms(points, axis), _logarithms(points, "loss")
    (intercept, slope), errors = _least_squares(points, np.stack([np.ones(len(points)), x]))
    interval = (-slope - errors[1], -slope + errors[1]) if errors else None
    means = np.array([loss[x == place].mean() for place in x])  # of the size of each point
    between, within = len(set(x)) - 2, len(x) - len(set(x))
    misfit = None
    if spread := np.square(loss - means).sum():
        ratio = np.square(means - intercept - slope * x).sum() / between / (spread / within)
        misfit = float(f.sf(ratio, between, within))
    return PowerLaw(float(np.exp(intercept)), -slope, interval, misfit)


def loss_ratio(points: Sequence[Point], axis: str, attn: str = "diff") -> LossRatio | None:
    """Loss over that of plain attention at equal 'parameters' or 'flops'; None where either has too few sizes.

    Two power laws of one exponent: log L = a + b log x, and c more where the attention is `attn`; the ratio is exp(c).
    Each takes ENOUGH sizes.

    Args:
        points: of `attn` and of 'plain', others are left out; their sizes need not be the same.
        axis: which attribute is x.
        attn: what is compared.
    """
    both = [point for point in points if point.attn in (attn, "plain")]
    if any(_sizes([point for point in both if point.attn == kind], axis) < ENOUGH for kind in (attn, "plain")):
        return None
    own = np.array([float(point.attn == attn) for point in both])
    (_, _, more), errors = _least_squares(both, np.stack([np.ones(len(both)), _logarithms(both, axis), own]))
    interval = (float(np.exp(more - errors[2])), float(np.exp(more + errors[2]))) if errors else None
    return LossRatio(float(np.exp(more)), interval)


def _sizes(points: Sequence[Point], axis: str) -> int:
    return len({getattr(point, axis) for point in points})


def _logarithms(points: Sequence[Point], attribute: str) -> np.ndarray:
    return np.log([float(getattr(point, attribute)) for point in points])


def _least_squares(points: Sequence[Point], terms: np.ndarray) -> tuple[list[float], list[float] | None]:
    """The coefficients of log loss in `terms` (coefficients, points), and half of the 95 % interval of each.

    The errors are those of other seeds: Student's t with the variance within a size and attention, pooled. A bootstrap
    of three seeds a size, which cannot see beyond these, holds the truth in 81 % of the cases instead of 95.
    """
    loss = _logarithms(points, "loss")
    inverse = np.linalg.pinv(terms.T)
    groups: dict[tuple[str, str], list[float]] = {}
    for point, one in zip(points, loss, strict=True):
        groups.setdefault((point.size, point.attn), []).append(one)
    coefficients = (inverse @ loss).tolist()
    freedom = len(points) - len(groups)
    if not freedom:
        return coefficients, None
    variance = sum(len(group) * np.var(group) for group in groups.values()) / freedom
    return coefficients, (t.ppf(0.975, freedom) * np.sqrt(variance * (inverse**2).sum(axis=1))).tolist()


def plot_scaling(points: Sequence[Point], path: Path, title: str) -> None:
    """Test loss over parameters and over FLOPs, both logarithmic: a dot a run, and the power law or segments of means.

    Args:
        points: of all sizes and kinds of attention.
        path: of the PNG.
        title: what was trained, on what.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, attribute, label in zip(
        axes, ("parameters", "flops"), ("Parameters", "FLOPs of an image's forward pass"), strict=True
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
                places = np.unique(x)
                means = [loss[x == place].mean() for place in places]
                axis.plot(places, means, color=ATTENTION[kind], label=f"{kind}: means, too few sizes for a law")
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
    figure.savefig(path, dpi=120)
