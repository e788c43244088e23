"""How the loss falls with the size of the model: counted FLOPs, a power law with its interval, and the picture.

`Kaplan et al. 2020` - https://arxiv.org/abs/2001.08361, L(N) = a N^-b
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from .benchmark import explicit_maps
from .colours import ATTENTION

__all__ = ["ENOUGH", "Point", "PowerLaw", "count_flops", "fit_power_law", "plot_scaling"]

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
        seed: of the bootstrap, which draws the runs of each size anew with replacement.
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        groups.setdefault(point.size, []).append((np.log(getattr(point, axis)), np.log(point.loss)))
    if len(groups) < ENOUGH:
        return None
    rng = np.random.default_rng(seed)

    def line(samples: list[tuple[float, float]]) -> tuple[float, float]:
        x, y = np.array(samples).T
        slope, intercept = np.polyfit(x, y, 1)
        return float(slope), float(intercept)

    runs = list(groups.values())
    slope, intercept = line([run for group in runs for run in group])
    drawn = []
    for _ in range(DRAWS):
        sample = [group[i] for group in runs for i in rng.integers(len(group), size=len(group))]
        drawn.append(line(sample)[0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return PowerLaw(float(np.exp(intercept)), -slope, (-float(high), -float(low)))


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
