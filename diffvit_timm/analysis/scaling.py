"""How the loss falls with the size of the model: counted FLOPs, a power law with its interval, and the picture.

`Kaplan et al. 2020` - https://arxiv.org/abs/2001.08361, L(N) = a N^-b
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from .benchmark import explicit_maps
from .colours import ATTENTION

__all__ = ["ENOUGH", "LossRatio", "Point", "PowerLaw", "count_flops", "fit_power_law", "loss_ratio", "plot_scaling"]

ENOUGH = 4  # sizes, below which two parameters explain any points
DRAWS = 2000


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
        interval: 95 % of it, from bootstrap draws of the runs of each size.
    """

    ratio: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """loss = scale * x^-exponent.

    Attributes:
        scale, exponent: least squares of the logarithms.
        interval: 95 % of the exponent, from bootstrap draws of the runs of each size.
    """

    scale: float
    exponent: float
    interval: tuple[float, float]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scale * x**-self.exponent


def count_flops(model: Any) -> int:
    """Of one image's forward pass, by torch's counter; differential attention by its explicit maps.

    Args:
        model: of timm.create_model; left as it is.
    """
    image = torch.zeros(1, *model.pretrained_cfg["input_size"][:1], *model.patch_embed.img_size)
    mode = model.training
    try:
        model.eval()
        # explicit, as the counter does not look into operators that it does not know
        with explicit_maps(model), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image.to(next(model.parameters()).device))
    finally:
        model.train(mode)
    return counter.get_total_flops()


def fit_power_law(points: Sequence[Point], axis: str, seed: int = 0) -> PowerLaw | None:
    """The power law of the loss in 'parameters' or 'flops'; None below ENOUGH sizes.

    Args:
        points: of one kind of attention.
        axis: which attribute is x.
        seed: of the bootstrap.
    """
    if len({point.size for point in points}) < ENOUGH:
        return None

    def law(runs: Sequence[Point]) -> tuple[float, float]:
        slope, intercept = np.polyfit(*_logarithms(runs, axis), 1)
        return -float(slope), float(np.exp(intercept))

    exponent, scale = law(points)
    return PowerLaw(scale, exponent, _interval(points, lambda runs: law(runs)[0], seed))


def loss_ratio(points: Sequence[Point], axis: str, attn: str = "diff", seed: int = 0) -> LossRatio | None:
    """Loss over that of plain attention at equal 'parameters' or 'flops'; None where either has too few sizes.

    Two power laws of one exponent: log L = a + b log x, and c more where the attention is `attn`; the ratio is exp(c).
    Each takes ENOUGH sizes.

    Args:
        points: of `attn` and of 'plain', others are left out; their sizes need not be the same.
        axis: which attribute is x.
        attn: what is compared.
        seed: of the bootstrap.
    """
    both = [point for point in points if point.attn in (attn, "plain")]
    if any(len({point.size for point in both if point.attn == kind}) < ENOUGH for kind in (attn, "plain")):
        return None

    def ratio(runs: Sequence[Point]) -> float:
        x, loss = _logarithms(runs, axis)
        design = np.stack([np.ones_like(x), x, [float(run.attn == attn) for run in runs]], axis=1)
        return float(np.exp(np.linalg.lstsq(design, loss)[0][2]))

    return LossRatio(ratio(both), _interval(both, ratio, seed))


def _logarithms(points: Sequence[Point], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Of x and of the loss."""
    return np.log([float(getattr(point, axis)) for point in points]), np.log([point.loss for point in points])


def _interval(points: Sequence[Point], statistic: Callable[[Sequence[Point]], float], seed: int) -> tuple[float, float]:
    """95 % of a statistic, where the runs of each size and attention are drawn anew with replacement."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.size, point.attn), []).append(point)
    rng = np.random.default_rng(seed)
    drawn = [
        statistic([group[i] for group in groups.values() for i in rng.integers(len(group), size=len(group))])
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def plot_scaling(points: Sequence[Point], path: Path, title: str) -> None:
    """Test loss over parameters and over FLOPs, both logarithmic: a dot a run, and the power law or segments of means.

    Args:
        points: of all sizes and kinds of attention.
        path: of the PNG.
        title: what was trained, on what.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
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
                low, high = law.interval
                name = f"{kind}: exponent {law.exponent:.3f} ({low:.3f} to {high:.3f})"
                axis.plot(x, law(x), color=ATTENTION[kind], label=name)
            else:
                places = np.unique(x)
                means = [loss[x == place].mean() for place in places]
                axis.plot(places, means, color=ATTENTION[kind], label=f"{kind}: means, too few sizes for a law")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    axes[0].set_ylabel("Test loss (nats)")
    figure.savefig(path, dpi=120)
