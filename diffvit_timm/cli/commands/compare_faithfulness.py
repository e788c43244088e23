"""Measure whether heat maps show what a network uses, by deletion and insertion of the hottest patches.

    diffvit compare faithfulness --models RUN                                          # 100 test images of Pets
    diffvit compare faithfulness --models DIFF PLAIN --dataset FOLDER --images 500     # two networks, your images
    diffvit compare faithfulness --models deit_tiny_patch16_224.fb_in1k --steps 28     # 28 smaller steps

The heat maps are attention of the last layer, rollout, relevance by gradients, and random maps as the baseline. The
curves follow the probability of the class that the network predicts.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...console import log0
from ...data.config import DatasetConfig
from ...errors import InputError, require_at_least, require_device
from ...files import write_atomically
from ...inspection import figures
from ...inspection.attention_maps import has_heat_maps
from ...inspection.naming import model_title
from ...models.pretrained import check_model, load_model, short_names
from ...options import CheckedOptions
from ...output import output_folder
from ...studies.faithfulness import area_summary, measure_faithfulness
from ..images import draw_test_images


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    models: tuple[str, ...]
    """timm model names with their pretrained tags, hf-hub:NAME, folders of weights, or run folders."""
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: DatasetConfig("timm/oxford-iiit-pet")
    )
    images: int = 100
    """Number of test images, drawn at random; every model gets the same ones."""
    steps: int = 14
    """Number of steps in which all patches are deleted or inserted."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    output: str = "auto"
    """Folder of the pictures and numbers, new or empty; auto: runs/faithfulness-DATE-TIME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, images=self.images, steps=self.steps)


def main(options: Options) -> dict:
    require_device(options.device)
    with output_folder(options.output, "faithfulness") as folder:
        return _compare(options, folder)


def _compare(options: Options, folder: Path) -> dict:
    short = short_names(options.models, "models")
    for name in options.models:
        check_model(name, parameter="models")
    test = draw_test_images(options.data, options.images)
    models = [_load(name) for name in options.models]
    areas: dict[str, Any] = {}
    for number, (name, model) in enumerate(zip(options.models, models, strict=True)):
        curves = measure_faithfulness(model, test.images, options.images, options.steps, options.device, label=name)
        where = f"{options.images} images of {Path(options.data.dataset).name} (split: {test.name})"
        title = (
            f"Deletion and insertion of patches in the order of heat maps\n{model_title(short[number], model)}, {where}"
        )
        numbers = {f"{kind}, {method}": curve for kind, methods in curves.items() for method, curve in methods.items()}
        path = folder / f"faithfulness{f'-{number}' if number else ''}.png"
        figures.save(figures.plot_faithfulness(curves, title), path, **numbers)
        areas[name] = {
            kind: {method: area_summary(curve) for method, curve in methods.items()} for kind, methods in curves.items()
        }
    write_atomically(folder / "faithfulness.json", json.dumps(areas, indent=1) + "\n")
    _print_areas(areas, options.images, test.name)
    log0(f"\n{folder}: the areas are in faithfulness.json, the curves in faithfulness*.png, their numbers in *.npz.")
    return {"output": str(folder), "areas": areas}


def _load(name: str) -> Any:
    model = load_model(name, parameter="models")
    if not has_heat_maps(model) or not model.num_classes:
        raise InputError(f"`models={name}` is not a ViT with a head, which the heat maps need: leave it out")
    return model


def _print_areas(areas: dict[str, Any], images: int, split: str) -> None:
    """Print one table per model, with one row per kind of heat map."""
    log0(
        "\nArea under the curve: probability of the predicted class over the share of deleted or inserted patches.\n"
        f"Mean of {images} images (split: {split}) ± half of its 95 % interval. If a heat map shows what the network "
        "uses,\nits deletion area is small and its insertion area is large."
    )
    for name, kinds in areas.items():
        log0(f"\n{name}\n  {'heat map':34s} {'deletion':15s} insertion")
        for method in kinds["deletion"]:
            deletion, insertion = (_shown(kinds[kind][method]) for kind in ("deletion", "insertion"))
            log0(f"  {method:34s} {deletion:15s} {insertion}")


def _shown(row: dict[str, Any]) -> str:
    return f"{row['area']:.3f}" + ("" if row["half_interval"] is None else f" ± {row['half_interval']:.3f}")
