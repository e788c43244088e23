"""Compare frozen networks: how well their features classify the images of a dataset, by k-NN and linear probes.

    diffvit compare probes vit_small_patch16_dinov3.lvd1689m                      # one network on the images of Pets
    diffvit compare probes PLAIN DIFF --dataset FOLDER --features head cls mean both
    diffvit compare probes RUN --probes knn --cache none

No weight of a network is changed, and no image is augmented. The training images are learned from, the validation
images choose k, the learning rate or the penalty, and the test images are classified. Differences are those to the
first network, on the same test images. Features are computed once and kept for later calls.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from huggingface_hub import cached_assets_path

from ... import __version__
from ...console import log0
from ...data.config import VAL_SHARE, DatasetConfig
from ...errors import InputError, require_at_least, require_device
from ...files import disk_errors, require_writable, write_atomically, write_csv
from ...inspection.features import FEATURES, Feature, require_features
from ...inspection.probes import PROBES, Probe
from ...models.pretrained import build_model_on_meta, check_model, load_model, short_names
from ...options import CheckedOptions
from ...output import output_folder
from ...studies.probing import ProbeResult, network_features, plot_probes, probe_network, probe_rows
from ...training.precision import autocast
from ..tables import points_with_interval, share_with_interval

if TYPE_CHECKING:
    from ...data.splits import Splits


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """timm model names with their pretrained tags, hf-hub:NAME, folders of weights, or run folders."""
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: DatasetConfig("timm/oxford-iiit-pet")
    )
    probes: tuple[Probe, ...] = PROBES
    """knn: weighted votes of the nearest training images; linear: a linear classifier by SGD; logreg: logistic
    regression with an L2 penalty."""
    features: tuple[Feature, ...] = ("head",)
    """head: the input of the network's head; cls: class token; mean: mean of the patch tokens; both: cls and mean."""
    val_share: float = VAL_SHARE
    """Share of the training images that choose the settings, if the dataset has no validation split."""
    max_train_samples: int = 0
    """Number of training images to learn from, drawn with the class proportions of the dataset; 0: all."""
    images: int = 0
    """Number of test images, drawn likewise; 0: all."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the networks; no: float32."""
    cache: str = "auto"
    """Folder of the computed features; auto: in the cache of assets of the Hub (HF_ASSETS_CACHE); none: keep none."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    output: str = "auto"
    """Folder of the table and the picture, new or empty; auto: runs/probes-DATE-TIME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("models", bool(self.models), "is empty: name at least one")
        self.require("val_share", 0 < self.val_share < 1, "must be between 0 and 1")
        require_at_least(0, max_train_samples=self.max_train_samples, images=self.images)
        for name, known in (("probes", PROBES), ("features", FEATURES)):
            values: tuple[str, ...] = getattr(self, name)
            self.require(name, bool(values), f"is empty: choose from {', '.join(known)}")
            self.require(name, len(set(values)) == len(values), "names a value twice: give each once")


def main(options: Options) -> dict:
    require_device(options.device)
    names = short_names(options.models, "models")
    for model in options.models:
        check_model(model, parameter="models")
        require_features(build_model_on_meta(model, "models"), options.features, f"`models={model}`")
    cache = _cache_folder(options.cache)
    with output_folder(options.output, "probes") as folder:
        return _compare(options, names, cache, folder)


def _compare(options: Options, names: list[str], cache: Path | None, folder: Path) -> dict:
    splits = _choose_images(options, options.data.load(val_share=options.val_share))
    results: list[ProbeResult] = []
    for name, given in zip(names, options.models, strict=True):
        model = load_model(given, parameter="models")
        with autocast(options.device, options.precision):  # not around the probes, whose weights it would round
            found = network_features(name, model, splits, options.features, cache, options.device)
        results += probe_network(name, found, splits, options.probes, options.device)
    rows = probe_rows(results, np.asarray(splits.test["label"][:]))
    dataset = Path(options.data.dataset).name
    where = (
        f"{dataset}: {len(splits.train):,} training, {len(splits.val):,} validation, {len(splits.test):,} test images"
    )
    result = {"models": options.models, "dataset": options.data.dataset, "fingerprints": splits.fingerprints}
    write_csv(folder / "probes.csv", list(rows[0]), rows)
    write_atomically(folder / "probes.json", json.dumps({**result, "rows": rows}, indent=1) + "\n")
    plot_probes(rows, folder / "probes.png", f"Probes of frozen networks\n{where}")
    _print_table(rows, where)
    log0(f"\n{folder}: the table is in probes.csv and probes.json, the picture in probes.png.")
    return {"output": str(folder), "images": len(splits.test), "rows": rows}


def _choose_images(options: Options, splits: "Splits") -> "Splits":
    """Draw the wanted numbers of training and test images, with the class proportions of the dataset."""
    from ...data.splits import require_every_class, take_stratified  # not above: --help does not wait for datasets

    for name, role in (("max_train_samples", "train"), ("images", "test")):
        split, count = getattr(splits, role), getattr(options, name)
        options.require(name, count <= len(split), f"exceeds the {len(split)} {role} images")
        if count:
            splits = dataclasses.replace(splits, **{role: take_stratified(split, count)})
    require_every_class(splits, f"`dataset={options.data.dataset}`")
    return splits


def _cache_folder(given: str) -> Path | None:
    """Return the folder of the features that this version computes; None to keep none."""
    if given == "none":
        return None
    if given == "auto":
        return cached_assets_path("diffvit_timm", namespace="features", subfolder=__version__)
    if Path(given).expanduser().is_file():
        raise InputError(f"`cache={given}` is a file: choose a folder")
    folder = Path(given).expanduser() / __version__
    with disk_errors("the features", folder, "choose another `cache`"):
        folder.mkdir(parents=True, exist_ok=True)
    require_writable(folder, f"`cache={given}`")
    return folder


def _print_table(rows: list[dict[str, Any]], where: str) -> None:
    log0(
        f"\n{where}\n"
        "In parentheses: 95 % intervals over the test images; difference: to the first network, in points, paired by\n"
        "image; *: the setting is at the edge of those that were tried."
    )
    width = max(len("model"), *(len(row["model"]) for row in rows))
    log0(f"\n{'model':{width}s}  features  probe   {'setting':10s} {'test accuracy':26s} difference")
    for row in rows:
        setting = row["setting"] + ("*" if row["at_edge"] else "")
        numbers = f"{share_with_interval(row):26s} {points_with_interval(row)}"
        log0(f"{row['model']:{width}s}  {row['features']:8s}  {row['probe']:6s}  {setting:10s} {numbers}")
