"""Deletion and insertion: do heat maps show what the model uses? Last layer, rollout and gradients beside random maps.

    python recipes/faithfulness.py --models runs/finetuned runs/plain                   # 100 test images of Pets
    python recipes/faithfulness.py --models deit_tiny_patch16_224.fb_in1k --dataset FOLDER --images 500

The class is the one that the model predicts. Results: recipes/README.md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.loading import image_batches
from diffvit_timm.errors import InputError, require_at_least, require_device
from diffvit_timm.files import output_folder
from diffvit_timm.inspection import figures
from diffvit_timm.inspection.attention_maps import can_capture
from diffvit_timm.inspection.perturbation import Curve, area_under, perturbation_curve
from diffvit_timm.inspection.rollout import heat_maps
from diffvit_timm.models.pretrained import check_model, load_model, model_name, short_names
from diffvit_timm.studies.results import mean_interval


@dataclasses.dataclass(frozen=True)
class FaithfulnessConfig:
    models: tuple[str, ...]
    """timm model names with their pretrained tags, hf-hub:NAME, or folders: of weights, or of runs."""
    dataset: str = "timm/oxford-iiit-pet"
    """Name on the Hub, or a folder: parquet files, or one folder of images a class."""
    label_column: str = "label"
    """Column of the class labels."""
    images: int = 100
    """Test images, drawn at random, the same for every model."""
    steps: int = 14
    """Steps in which all patches are taken away, or shown."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, ..."""
    output: str = "auto"
    """Folder of the pictures and numbers, new or empty; auto: runs/faithfulness-DATE-TIME."""

    def __post_init__(self) -> None:
        require_at_least(1, images=self.images, steps=self.steps)
        require_device(self.device)
        if not self.models:
            raise InputError("--models names none")


def curves_of(model: Any, images: Tensor, steps: int, draws: torch.Generator) -> dict[Curve, dict[str, Tensor]]:
    """Of each kind of curve and way to draw heat maps, (B, steps + 1)."""
    heat = heat_maps(model, images)
    ways = {
        "last layer": heat.last_layer,
        "rollout": heat.rollout,
        "for the prediction, by gradients": heat.relevance,
        "random": torch.rand(heat.rollout.shape, generator=draws),
    }
    targets = heat.logits.argmax(dim=-1)
    return {
        kind: {name: perturbation_curve(model, images, way, targets, kind, steps) for name, way in ways.items()}
        for kind in get_args(Curve)
    }


def measure(name: str, model: Any, split: Any, config: FaithfulnessConfig) -> dict[Curve, dict[str, np.ndarray]]:
    """The curves of all images, (images, steps + 1) each."""
    model.eval().to(config.device)
    draws = torch.Generator().manual_seed(0)
    parts: dict[Curve, dict[str, list[Tensor]]] = {kind: {} for kind in get_args(Curve)}
    for batch in image_batches(model, split, config.images, label=name):
        for kind, ways in curves_of(model, batch.to(config.device), config.steps, draws).items():
            for way, curve in ways.items():
                parts[kind].setdefault(way, []).append(curve.cpu())
    return {kind: {way: torch.cat(p).numpy() for way, p in ways.items()} for kind, ways in parts.items()}


def summary(curve: np.ndarray) -> dict[str, float | int | None]:
    """The mean area under the curves of images, half the width of its 95 % interval (None of a single one), and n."""
    areas = area_under(torch.from_numpy(curve)).tolist()
    area, half = mean_interval(areas)
    return {"area": area, "half_interval": half, "images": len(areas)}


def main() -> dict:
    config = parse_config(FaithfulnessConfig, description=__doc__)
    folder = output_folder(config.output, "faithfulness")
    short = short_names(config.models, "--models")
    for name in config.models:
        check_model(model_name(name), option="--models")
    split = load_splits(config.dataset, label_column=config.label_column).test
    if config.images > len(split):
        raise InputError(f"--images {config.images}: --dataset {config.dataset} has {len(split)} to test on")
    models = {name: load_model(model_name(name), option="--models") for name in config.models}
    for name, model in models.items():
        if not can_capture(model) or not model.num_classes:
            raise InputError(f"--models {name} is no ViT with a head, which heat maps are drawn of")
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for number, (name, model) in enumerate(models.items()):
        curves = measure(name, model, split, config)
        figure = figures.plot_faithfulness(
            curves, f"{short[number]}, {config.images} images of {Path(config.dataset).name}"
        )
        numbers = {f"{kind}, {way}": curve for kind, ways in curves.items() for way, curve in ways.items()}
        figures.save(figure, folder / f"faithfulness{f'-{number}' if number else ''}.png", **numbers)
        results[name] = {k: {way: summary(curve) for way, curve in ways.items()} for k, ways in curves.items()}
        log0(f"\n{name}: area under the curve (95 % interval), {config.images} images")
        for kind, ways in results[name].items():
            for way, row in ways.items():
                half = "" if row["half_interval"] is None else f" ± {row['half_interval']:.3f}"
                log0(f"  {kind:10s} {way:34s} {row['area']:.3f}{half}")
    (folder / "faithfulness.json").write_text(json.dumps(results, indent=1) + "\n")
    return {"output": str(folder), "areas": results}


if __name__ == "__main__":
    run(main)
