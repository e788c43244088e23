"""Measure how the test loss falls with the size of the model, for differential and for plain attention.

    diffvit study scaling --sizes 32x2 64x3 96x4 128x6                  # widths and depths, CIFAR-10, 3 seeds
    diffvit study scaling --dataset cifar100 --batch-size 64 --sizes diffvit_10m_patch8_224 diffvit_25m_patch8_224

Each training has its own folder below --output (auto: runs/scaling). Its metrics.jsonl has the training loss (the mean
of --log-every updates) and the validation loss (after each epoch, or every --val-every updates). Finished trainings do
not run again, and the same command continues a study that was killed. The other options are those of diffvit train.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated

import tyro

from ...console import log0
from ...files import write_atomically
from ...studies.flops import forward_flops
from ...studies.power_law import MIN_SIZES, Point, plot_scaling
from ...studies.runs import SCRATCH, check_complete, train_all
from ...studies.scaling import ScalingConfig, fit_points, plan_scaling
from ...training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Options(ScalingConfig):
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = SCRATCH


def main(options: Options) -> dict:
    points: list[Point] = []
    plan, folder = plan_scaling(options), options.folder("scaling")
    for size, config, result, model in train_all(plan):
        parameters = sum(p.numel() for p in model.parameters())
        figures = parameters, forward_flops(model), result["test_loss"], result["test_accuracy"]
        points.append(Point(size, result["attn"], config.run.seed, *figures))
        _write(folder, points)
    log0("\nOne row per training. MFLOPs: of the forward pass of one image. Test loss: cross-entropy, nats.")
    log0(f"{'size':24s} attention   seed   parameters   MFLOPs   test loss   accuracy")
    for p in points:
        sizes = f"{p.parameters:12,d} {p.flops / 1e6:8.1f}"
        log0(f"{p.size:24s} {p.attn:9s} {p.seed:6d} {sizes} {p.loss:11.4f} {p.accuracy:10.2%}")
    are_models = all(size.startswith("diffvit") for size in options.sizes)
    models = ", ".join(options.sizes) if are_models else f"sizes of {options.train.model.model}"
    plot_scaling(points, folder / "scaling.png", f"Test loss of {models}: {options.title}")
    fitted = fit_points(points)
    _print_fits(fitted)
    summary = _write(folder, points, **fitted)
    log0(f"\n{folder}: the points and the laws in scaling.json, the picture in scaling.png.")
    check_complete(plan, len(points))
    return summary


def _print_fits(fitted: dict[str, dict]) -> None:
    laws, ratios = fitted["laws"], fitted["over_plain"]
    for axis, attn in itertools.product(("parameters", "flops"), laws | ratios):
        if law := laws.get(attn, {}).get(axis):
            log0(f"{attn}: loss = {law['scale']:.2f} ({axis})^-{law['exponent']:.4f}{_interval_text(law['interval'])}")
            if law["misfit"] is not None and law["misfit"] < 0.05:
                log0(
                    f"  but the sizes do not lie on a power law (p = {law['misfit']:.2g}): the interval only covers "
                    "the variation between seeds"
                )
        if ratio := ratios.get(attn, {}).get(axis):
            interval = _interval_text(ratio["interval"])
            log0(f"loss of {attn} / loss of plain at equal {axis}: {ratio['ratio']:.4f}{interval}")
    if not laws:
        log0(f"a power law needs {MIN_SIZES} sizes: the picture connects the means of these")


def _interval_text(interval: tuple[float, float] | None) -> str:
    return " (95 % interval {:.4f} to {:.4f})".format(*interval) if interval else ""


def _write(folder: Path, points: list[Point], **found: dict) -> dict:
    """Write the points, and what was fitted to them; returns what was written."""
    summary = {"points": [dataclasses.asdict(point) for point in points], **found}
    write_atomically(folder / "scaling.json", json.dumps(summary, indent=1) + "\n")
    return summary
