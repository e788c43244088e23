"""Time networks in several precisions and batch sizes, and measure their memory and whether they predict as in fp32.

    diffvit benchmark models --model resnet50 vit_small_patch16_224 diffvit_small_patch16
    diffvit benchmark models --model RUN PLAIN --dataset FOLDER --batch-size 1,32         # with accuracy and agreement
    diffvit benchmark models --model clip:ViT-B-32 clip:RN50 --images 8                   # image towers of open_clip
    diffvit benchmark models --model resnet50 --device cuda --precision fp32,bf16,fp16    # on a GPU

The networks of one batch size are timed in turns, so that other load on the machine affects all of them.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ...console import log0
from ...data.config import DatasetConfig
from ...errors import require_at_least, require_device
from ...files import write_atomically, write_csv
from ...models.pretrained import short_names
from ...options import CheckedOptions, check_value
from ...output import output_folder
from ...studies.inference_speed import (
    check_candidate,
    compare_precisions,
    load_candidate,
    plot_throughput,
    time_candidates,
)
from ...studies.timing import PRECISIONS, emulation_note, hardware_name

FIELDS = (
    "model", "precision", "batch_size", "p50_ms", "p90_ms", "images_per_second", "weights_mb", "peak_mb", "load_s",
    "agreement", "largest_difference", "accuracy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OptionalDataset(DatasetConfig):
    dataset: str = ""
    """Dataset on the Hub, a short name, or a folder, whose test images are classified; empty: noise is classified."""


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    model: tuple[str, ...]
    """timm model names, hf-hub:NAME, folders of weights, run folders, or clip:NAME for an image tower of open_clip."""
    data: Annotated[OptionalDataset, tyro.conf.arg(name="")] = OptionalDataset()
    pretrained: bool = False
    """Load the pretrained weights of models on the Hub; folders always load their weights."""
    precision: str = "fp32,bf16"
    """Precisions of weights and images, separated by commas: fp32, bf16, fp16. Many CPUs emulate fp16."""
    batch_size: str = "1,8"
    """Numbers of images per step, separated by commas."""
    repeats: int = 10
    """Number of rounds; in each round every network takes one step."""
    images: int = 64
    """Number of images on which the precisions are compared."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    output: str = "auto"
    """Folder of the tables and the picture, new or empty; auto: runs/benchmark-DATE-TIME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, repeats=self.repeats, images=self.images)
        known = {"fp32"} <= set(self.precisions) <= set(PRECISIONS)
        self.require(
            "precision", known, "must be fp32, with which the others are compared, and optionally bf16 and fp16"
        )
        sizes = self.batch_size.split(",")
        self.require(
            "batch_size", all(re.fullmatch("0*[1-9][0-9]*", size) for size in sizes),
            "must be numbers from 1 on, separated by commas",
        )  # fmt: skip
        check_value("batch_size", tuple(self.batch_sizes))
        for name, values in (("precision", self.precisions), ("batch_size", self.batch_sizes)):
            self.require(name, len(set(values)) == len(values), "names a value twice: give each once")

    @property
    def precisions(self) -> list[str]:
        return self.precision.split(",")

    @property
    def batch_sizes(self) -> list[int]:
        return [int(size) for size in self.batch_size.split(",")]


def main(options: Options) -> dict:
    require_device(options.device)
    with output_folder(options.output, "benchmark") as folder:
        return _benchmark(options, folder)


def _benchmark(options: Options, folder: Path) -> dict:
    device, precisions = options.device, options.precisions
    names = short_names(options.model)
    for model in options.model:
        check_candidate(model, options.pretrained)
    split, class_names = _test_images(options)
    for note in filter(None, (emulation_note(precision, device) for precision in precisions)):
        log0(note)
    candidates = [
        load_candidate(model, name, class_names, options.pretrained, device)
        for model, name in zip(options.model, names, strict=True)
    ]
    quality = compare_precisions(candidates, precisions, split, options.images, device)
    rows = []
    for size in options.batch_sizes:
        log0(f"timing batches of {size}")
        rows += time_candidates(candidates, precisions, size, options.repeats, device)
    rows = [{**row, **quality[row["model"], row["precision"]]} for row in rows]
    hardware = hardware_name(device)
    settings = dataclasses.asdict(options)
    settings |= {**settings.pop("data"), "dataset": options.data.dataset or None, "output": str(folder)}
    result = {**settings, "hardware": hardware, "torch": torch.__version__, "rows": rows}
    _write(result, folder)
    _print_rows(rows, hardware)
    log0(f"\n{folder}: the table is in benchmark.csv and benchmark.json, the throughput in benchmark.png.")
    return result


def _test_images(options: Options) -> tuple[Any, list[str]]:
    """Return the images to classify, drawn at random, and their class names; None and no names without a dataset."""
    if not options.data.dataset:
        log0("there is no --dataset, so the precisions are compared on noise, which no network was trained on")
        return None, []
    splits = options.data.load()
    return splits.test.shuffle(seed=0).take(min(options.images, len(splits.test))), splits.class_names


def _write(result: dict[str, Any], folder: Path) -> None:
    """Write the rows as a table, the whole result, and the picture."""
    write_csv(folder / "benchmark.csv", FIELDS, result["rows"])
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")
    plot_throughput(result["rows"], folder / "benchmark.png", f"Inference on {result['hardware']}")


def _print_rows(rows: list[dict[str, Any]], hardware: str) -> None:
    """Print a table with one row per network, precision and batch size."""
    log0(
        f"\nInference on {hardware}\n"
        "p50, p90: median and 90th percentile of the time per batch; images/s: throughput at the median; weights: "
        "memory of the\nweights; peak: largest memory of all other tensors at one time; load: time to create the "
        "network and load its weights;\nsame: images with the top-1 class of fp32; top-1: accuracy on the images whose "
        "class the network has; -: not measurable."
    )
    width = max(len("model"), *(len(row["model"]) for row in rows))
    titles = f"{'p50, ms':>9s} {'p90, ms':>9s} {'images/s':>8s} {'weights, MiB':>12s} {'peak, MiB':>9s} {'load, s':>7s}"
    log0(f"\n{'model':{width}s}  precision batch {titles} {'same':>6s} {'top-1':>7s}")
    for row in rows:
        same = "-" if row["agreement"] is None else f"{row['agreement']:.1%}"
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        log0(
            f"{row['model']:{width}s}  {row['precision']:9s} {row['batch_size']:5d} {row['p50_ms']:9.1f} "
            f"{row['p90_ms']:9.1f} {row['images_per_second']:8.1f} {row['weights_mb']:12.1f} {row['peak_mb']:9.1f} "
            f"{row['load_s']:7.2f} {same:>6s} {accuracy:>7s}"
        )
