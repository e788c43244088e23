"""Compare the accuracy of networks under attack, each attacked through its own gradients.

    diffvit compare attacks PLAIN DIFF --dataset FOLDER                     # changes of 1 and 4 of 255 levels
    diffvit compare attacks PLAIN DIFF --epsilons 0.5 1 2 --steps 20 --images 500

The attack is projected gradient descent (Madry et al. 2018): it changes every pixel and channel by at most epsilon, so
that the loss of the true class rises. The accuracy under this attack is an upper bound: another attack may find more.
Differences are those to the first network.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...console import log0
from ...data.config import DatasetConfig
from ...errors import require_at_least, require_device
from ...files import write_atomically, write_csv
from ...models.pretrained import check_model, load_model, short_names
from ...options import CheckedOptions
from ...output import output_folder
from ...studies.attacks import attack_networks, attack_rows, plot_attacks
from ..images import draw_test_images
from ..tables import points_with_interval, share_with_interval


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """timm model names with their pretrained tags, hf-hub:NAME, folders of weights, or run folders."""
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: DatasetConfig("timm/oxford-iiit-pet")
    )
    epsilons: tuple[float, ...] = (1.0, 4.0)
    """One attack per value: the largest change of a pixel in any channel, in 255ths of the range of the pixels."""
    steps: int = 10
    """Steps of an attack."""
    images: int = 200
    """Number of test images, drawn at random; 0: all. Every network gets the same ones."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    output: str = "auto"
    """Folder of the table and the picture, new or empty; auto: runs/attacks-DATE-TIME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("models", bool(self.models), "is empty: name at least one")
        require_at_least(0, images=self.images)
        require_at_least(1, steps=self.steps)
        self.require("images", self.images != 1, "has no interval: take at least two, or 0 for all")
        self.require("epsilons", bool(self.epsilons), "is empty: name at least one")
        self.require("epsilons", len(set(self.epsilons)) == len(self.epsilons), "names a value twice: give each once")
        in_range = all(math.isfinite(epsilon) and 0 < epsilon <= 255 for epsilon in self.epsilons)
        self.require("epsilons", in_range, "must be above 0 and at most 255")


def main(options: Options) -> dict:
    require_device(options.device)
    with output_folder(options.output, "attacks") as folder:
        return _compare(options, folder)


def _compare(options: Options, folder: Path) -> dict:
    names = short_names(options.models, "models")
    for model in options.models:
        check_model(model, parameter="models")
    test = draw_test_images(options.data, options.images)
    split, epsilons = test.images, sorted(options.epsilons)
    models = {name: load_model(model, parameter="models") for name, model in zip(names, options.models, strict=True)}
    right = attack_networks(models, split, epsilons, options.steps, test.class_names, options.device)
    rows = attack_rows(models, right, split, epsilons, options.steps)
    where = f"{len(split):,} images of {Path(options.data.dataset).name} ({test.name})"
    write_csv(folder / "attacks.csv", list(rows[0]), rows)
    result = {"models": options.models, "dataset": options.data.dataset, "rows": rows}
    write_atomically(folder / "attacks.json", json.dumps(result, indent=1) + "\n")
    plot_attacks(rows, folder / "attacks.png", f"Accuracy under projected gradient descent, {where}")
    _print_table(rows, where, options.steps)
    log0(f"\n{folder}: the table is in attacks.csv and attacks.json, the picture is attacks.png.")
    shown = ("epsilon", "accuracy", "low", "high")
    summary = {
        name: {
            "lambda": next(row["lambda"] for row in rows if row["model"] == name),
            "attacks": [{key: row[key] for key in shown} for row in rows if row["model"] == name],
        }
        for name in names
    }
    return {"output": str(folder), "images": len(split), "models": summary}


def _print_table(rows: list[dict[str, Any]], where: str, steps: int) -> None:
    """Print one line per network and attack."""
    log0(
        f"\n{where}, {steps} steps of projected gradient descent against each network\n"
        "epsilon: largest change of a pixel in 255ths, 0: unchanged images; lambda, negative: means over the layers;\n"
        "in parentheses: 95 % intervals over the images; difference: to the first network, paired by image."
    )
    width = max(len("model"), *(len(row["model"]) for row in rows))
    log0(f"\n{'model':{width}s}  lambda  negative  epsilon  {'accuracy':26s}  difference in points")
    for row in rows:
        about = "     -         -" if row["lambda"] is None else f"{row['lambda']:6.3f}  {row['negative_mass']:8.1%}"
        accuracy, difference = share_with_interval(row), points_with_interval(row)
        log0(f"{row['model']:{width}s}  {about}  {row['epsilon']:7g}  {accuracy:26s}  {difference}")
