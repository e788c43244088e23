"""Accuracy of several networks on images that were changed against each of them, by its own gradients."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from ..data.loading import image_batches, model_data_config
from ..inspection.accuracy import paired_differences, wilson_interval
from ..inspection.attacks import projected_gradient_descent
from ..inspection.colours import LINES
from ..inspection.saving import save_figure
from ..inspection.statistics import layer_statistics
from ..layers.hooks import evaluating
from ..zero_shot.class_names import class_scores
from .robustness import dataset_outputs
from .robustness_figures import draw_accuracies

if TYPE_CHECKING:
    import datasets

__all__ = ["attack_networks", "attack_rows", "plot_attacks"]

SEED = 0  # of the random starts; networks of one image size get the same ones
STATISTICS_IMAGES = 16  # images on which lambda and negative attention are measured


def attack_networks(
    models: Mapping[str, Any],
    split: "datasets.Dataset",
    epsilons: Sequence[float],
    steps: int,
    class_names: Sequence[str] | None = None,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Classify the images of a split, unchanged and changed against each network.

    Args:
        models: name -> network, which is moved to the device.
        split: a stored split of `Splits`.
        epsilons: largest changes of a pixel and channel, in 255ths of the range of the pixels.
        steps: steps of projected gradient descent.
        class_names: as in `measure_robustness`.
        device: device to compute on.

    Returns:
        Name -> whether each image is classified correctly, unchanged and under each attack, (images, 1 + epsilons).

    Raises:
        InputError: as `measure_robustness`.
    """
    labels = torch.tensor(split["label"][:], device=device)
    return {
        name: _attack(name, model.to(device), split, labels, epsilons, steps, class_names)
        for name, model in models.items()
    }


def _attack(
    name: str,
    model: Any,
    split: "datasets.Dataset",
    labels: Tensor,
    epsilons: Sequence[float],
    steps: int,
    class_names: Sequence[str] | None,
) -> np.ndarray:
    outputs = None if class_names is None else dataset_outputs(name, model, class_names)
    config = model_data_config(model)
    mean, std = (torch.tensor(config[key], device=labels.device).view(-1, 1, 1) for key in ("mean", "std"))

    def logits_of(images: Tensor) -> Tensor:
        logits = model((images - mean) / std).float()
        return class_scores(logits, outputs) if outputs else logits

    generator, rows, done = torch.Generator(labels.device).manual_seed(SEED), [], 0
    with evaluating(model):
        for batch in image_batches(model, split, label=f"attacking {name}"):
            images = (batch.to(labels.device) * std + mean).clamp(0, 1)  # (B, C, H, W)
            own = labels[done : done + len(images)]
            changed = (
                projected_gradient_descent(logits_of, images, own, epsilon / 255, steps, generator)
                for epsilon in epsilons
            )
            with torch.no_grad():
                right = [logits_of(each).argmax(-1) == own for each in (images, *changed)]
            rows.append(torch.stack(right, dim=1).cpu())
            done += len(images)
    return torch.cat(rows).numpy()


def attack_rows(
    models: Mapping[str, Any],
    right: Mapping[str, np.ndarray],
    split: "datasets.Dataset",
    epsilons: Sequence[float],
    steps: int,
) -> list[dict[str, Any]]:
    """Compute one row per network and attack.

    Args:
        models, split, epsilons, steps: as in `attack_networks`.
        right: its result.

    Returns:
        Rows of `model`; `lambda` and `negative_mass`, means over the layers, None for a plain network; `epsilon` in
        255ths, 0 for the unchanged images; `steps`; `images`; `accuracy` with `low` and `high`, Wilson's 95 % interval;
        and `difference` to the first network with its interval, paired by image, as in `paired_differences`.
    """
    first = next(iter(right.values())).astype(float)
    rows = []
    for number, (name, own) in enumerate(right.items()):
        statistics = layer_statistics(models[name], list(image_batches(models[name], split, STATISTICS_IMAGES)))
        about = {
            "model": name,
            "lambda": float(np.mean(statistics.lambdas)) if statistics.lambdas else None,
            "negative_mass": float(np.mean(statistics.negative_mass)) if statistics.negative_mass else None,
        }
        paired = paired_differences(own.astype(float), first if number else None)
        for place, (epsilon, difference) in enumerate(zip((0.0, *epsilons), paired, strict=True)):
            low, high = wilson_interval(own[:, place])
            accuracy = {"accuracy": float(own[:, place].mean()), "low": low, "high": high}
            rows.append({**about, "epsilon": epsilon, "steps": steps, "images": len(own), **accuracy, **difference})
    return rows


def plot_attacks(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Plot the accuracy over epsilon, with one line per network. A bar is a 95 % interval.

    Args:
        rows: result of `attack_rows`.
        path: PNG file to write.
        title: title of the figure.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    width = max(row["epsilon"] for row in rows)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    figure.suptitle(title, fontsize=11, wrap=True)
    axis = figure.subplots()
    for number, (model, colour) in enumerate(zip(models, itertools.cycle(LINES), strict=False)):
        own = [row for row in rows if row["model"] == model]
        draw_accuracies(axis, own, "epsilon", colour, 0.008 * width * (number - (len(models) - 1) / 2))
    axis.set_xticks(sorted({row["epsilon"] for row in rows}))
    axis.set_xlabel("Largest change of a pixel, in 255ths (0: unchanged)")
    axis.set_ylabel("Accuracy (top-1)")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(alpha=0.3)
    figure.legend(axis.get_lines(), models, loc="outside lower center", fontsize=8)
    save_figure(figure, path)
