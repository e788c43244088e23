"""Compare the accuracy and calibration of networks on clean and on corrupted test images.

    diffvit compare robustness RUN                                               # one network on the images of Pets
    diffvit compare robustness PLAIN DIFF --dataset FOLDER --images 500          # two networks, your images
    diffvit compare robustness PLAIN DIFF --corruptions fog contrast --severities 1 2 3 4 5

The corruptions are noise, blur, fog, brightness, contrast, JPEG compression and pixelation, as in Hendrycks and
Dietterich (2019). All networks get the same corrupted images. Differences are those to the first network.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from timm.data import create_transform

from ...console import log0
from ...data.config import DatasetConfig
from ...data.corruptions import CORRUPTIONS, SEVERITIES
from ...data.decoding import decode_image
from ...data.images import MODES
from ...data.loading import model_data_config
from ...errors import require_at_least, require_device
from ...files import write_atomically, write_csv
from ...models.pretrained import check_model, load_model, short_names
from ...options import CheckedOptions
from ...output import output_folder
from ...studies.robustness import (
    CLEAN,
    DEFAULT_SEVERITIES,
    MEAN,
    Condition,
    conditions,
    measure_robustness,
    robustness_rows,
)
from ...studies.robustness_figures import plot_corruptions, plot_robustness
from ..images import draw_test_images
from ..tables import points_with_interval, share_with_interval


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """timm model names with their pretrained tags, hf-hub:NAME, folders of weights, or run folders."""
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: DatasetConfig("timm/oxford-iiit-pet")
    )
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    """Corruptions to apply."""
    severities: tuple[int, ...] = DEFAULT_SEVERITIES
    """Severities of each corruption, from 1 to 5."""
    images: int = 0
    """Number of test images, drawn at random; 0: all."""
    workers: int = 0
    """Number of processes that decode and corrupt images; 0: the main process does it."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    output: str = "auto"
    """Folder of the tables and pictures, new or empty; auto: runs/robustness-DATE-TIME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("models", bool(self.models), "is empty: name at least one")
        require_at_least(0, images=self.images, workers=self.workers)
        self.require("images", self.images != 1, "has no interval: take at least two, or 0 for all")
        for name, known in (("corruptions", tuple(CORRUPTIONS)), ("severities", SEVERITIES)):
            values = getattr(self, name)
            self.require(name, set(values) <= set(known), f"is not known: choose from {', '.join(map(str, known))}")
            self.require(name, len(set(values)) == len(values), "names a value twice: give each once")
            self.require(name, bool(values), "is empty: name at least one")


def main(options: Options) -> dict:
    require_device(options.device)
    with output_folder(options.output, "robustness") as folder:
        return _compare(options, folder)


def _compare(options: Options, folder: Path) -> dict:
    names = short_names(options.models, "models")
    for model in options.models:
        check_model(model, parameter="models")
    test = draw_test_images(options.data, options.images)
    split, listed = test.images, conditions(options.corruptions, sorted(options.severities))
    models = {model: load_model(model, parameter="models") for model in options.models}
    outcomes = measure_robustness(models, split, listed, test.class_names, options.device, options.workers)
    rows = robustness_rows(dict(zip(names, outcomes.values(), strict=True)), listed)
    dataset = Path(options.data.dataset).name
    where = f"{len(split):,} images of {dataset} ({test.name})"
    _write(options, rows, folder)
    plot_robustness(rows, folder / "robustness.png", f"Accuracy under corruptions, {where}")
    title = f"The corruptions of an image of {dataset}, as {names[0]} reads it"
    plot_corruptions(_example(models[options.models[0]], split), listed, folder / "corruptions.png", title)
    _print_tables(rows, listed, where)
    log0(
        f"\n{folder}: the tables are in robustness.csv and robustness.json, the accuracies in robustness.png, the\n"
        "corruptions of one image in corruptions.png."
    )
    shown = (CLEAN.corruption, MEAN.corruption)
    summary = {
        name: {row["corruption"]: row for row in rows if row["model"] == name and row["corruption"] in shown}
        for name in names
    }
    return {"output": str(folder), "images": len(split), "models": summary}


def _write(options: Options, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write all rows as a table, and with the parameters of the corruptions as JSON."""
    parameters = {name: CORRUPTIONS[name]._asdict() for name in options.corruptions}
    result = {"models": options.models, "dataset": options.data.dataset, "parameters": parameters, "rows": rows}
    write_csv(folder / "robustness.csv", list(rows[0]), rows)
    write_atomically(folder / "robustness.json", json.dumps(result, indent=1) + "\n")


def _example(model: Any, split: Any) -> np.ndarray:
    """Return the first image as a network crops it, (H, W, C), uint8."""
    config = model_data_config(model)
    transform: Any = create_transform(**config, is_training=False, normalize=False)
    image = decode_image(split[0]["image"], MODES[config["input_size"][0]], f"image 0 of split {split.split}")
    return transform(image).permute(1, 2, 0).numpy()


def _print_tables(rows: list[dict[str, Any]], listed: list[Condition], where: str) -> None:
    """Print the means of all networks, and the accuracies of each."""
    log0(
        f"\n{where}, {len(listed) - 1} conditions\n"
        "mCA: mean accuracy over all corruptions and severities; NLL: mean cross-entropy in nats; ECE: expected\n"
        "calibration error (15 bins); in parentheses: 95 % intervals over the images; difference: to the first\n"
        "network, paired by image."
    )
    models = list(dict.fromkeys(row["model"] for row in rows))
    width = max(len("model"), *map(len, models))
    for condition, title in ((CLEAN, "clean"), (MEAN, "mCA")):
        log0(f"\n{'model':{width}s}  {title:26s}     NLL     ECE  difference in points")
        for row in rows:
            if row["corruption"] == condition.corruption:
                numbers = f"{row['nll']:7.3f} {row['ece']:7.2%}"
                log0(f"{row['model']:{width}s}  {share_with_interval(row):26s} {numbers}  {points_with_interval(row)}")
    accuracies = {(row["model"], row["corruption"], row["severity"]): row["accuracy"] for row in rows}
    severities = list(dict.fromkeys(condition.severity for condition in listed if condition != CLEAN))
    for model in models:
        log0(f"\n{model}\n  {'accuracy at severity':20s} " + " ".join(f"{severity:7d}" for severity in severities))
        for corruption in dict.fromkeys(condition.corruption for condition in listed if condition != CLEAN):
            cells = (f"{accuracies[model, corruption, severity]:7.2%}" for severity in severities)
            log0(f"  {corruption:20s} {' '.join(cells)}")
