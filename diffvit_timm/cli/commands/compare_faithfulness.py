"""Measure whether heat maps show what a network uses, by deletion and insertion of the hottest patches.

    diffvit compare faithfulness --models RUN                                          # 100 test images of Pets
    diffvit compare faithfulness --models DIFF PLAIN --dataset FOLDER --images 500     # two networks, your images
    diffvit compare faithfulness --models deit_tiny_patch16_224.fb_in1k --steps 28     # 28 smaller steps
    diffvit compare faithfulness --models RUN --dataset clutter                        # and the heat on the digits

The heat maps are attention of the last layer, rollout, relevance by gradients, and random maps as the baseline. The
curves follow the probability of the class that the network predicts. Digits among distractors (--dataset clutter, or
FOLDER+clutter) have masks, so the share of the heat that lies on the digit is measured as well.
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
from ...studies.faithfulness import Faithfulness, area_summary, measure_faithfulness, share_summary
from ..images import draw_test_images

ON_OBJECT = "on the object"  # name of the share of the heat in the files


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
        found = measure_faithfulness(model, test.images, options.steps, options.device, label=name)
        where = f"{options.images} images of {Path(options.data.dataset).name} (split: {test.name})"
        title = (
            f"Deletion and insertion of patches in the order of heat maps\n{model_title(short[number], model)}, {where}"
        )
        numbers = {f"{kind}, {method}": curve for kind, maps in found.curves.items() for method, curve in maps.items()}
        numbers |= {f"{ON_OBJECT}, {method}": shares for method, shares in found.on_object.items()}
        path = folder / f"faithfulness{f'-{number}' if number else ''}.png"
        figures.save(figures.plot_faithfulness(found.curves, title), path, **numbers)
        areas[name] = _summaries(found)
    write_atomically(folder / "faithfulness.json", json.dumps(areas, indent=1) + "\n")
    _print_areas(areas, options.images, test.name)
    log0(f"\n{folder}: the areas are in faithfulness.json, the curves in faithfulness*.png, their numbers in *.npz.")
    return {"output": str(folder), "areas": areas}


def _load(name: str) -> Any:
    model = load_model(name, parameter="models")
    if not has_heat_maps(model) or not model.num_classes:
        raise InputError(f"`models={name}` is not a ViT with a head, which the heat maps need: leave it out")
    return model


def _summaries(found: Faithfulness) -> dict[str, dict]:
    """Return one summary per measure and kind of heat map."""
    areas: dict[str, dict] = {
        kind: {method: area_summary(curve) for method, curve in maps.items()} for kind, maps in found.curves.items()
    }
    shares = {method: share_summary(values) for method, values in found.on_object.items()}
    return areas | ({ON_OBJECT: shares} if shares else {})


def _print_areas(areas: dict[str, Any], images: int, split: str) -> None:
    """Print one table per model, with one row per kind of heat map."""
    log0(
        "\nArea under the curve: probability of the predicted class over the share of deleted or inserted patches.\n"
        f"Mean of {images} images (split: {split}) ± half of its 95 % interval. If a heat map shows what the network "
        "uses,\nits deletion area is small and its insertion area is large."
    )
    if any(ON_OBJECT in kinds for kinds in areas.values()):
        log0("On the object: share of the heat that lies on it. That of random maps is its share of the area.")
    for name, kinds in areas.items():
        log0(f"\n{name}\n  {'heat map':34s} {'  '.join(f'{kind:13s}' for kind in kinds)}")
        for method in kinds["deletion"]:
            log0(f"  {method:34s} {'  '.join(f'{_shown(maps[method]):13s}' for maps in kinds.values())}")


def _shown(row: dict[str, Any]) -> str:
    value = row["area"] if "area" in row else row["share"]
    return f"{value:.3f}" + ("" if row["half_interval"] is None else f" ± {row['half_interval']:.3f}")
