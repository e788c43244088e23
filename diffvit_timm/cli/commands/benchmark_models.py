"""Time networks in several precisions and batch sizes, and measure their memory and whether they predict as in fp32.

    diffvit benchmark models --model clip:RN50:openai --dataset FOLDER --precision fp32,fp16   # still the same in fp16?
    diffvit benchmark models --model resnet50 vit_small_patch16_224 diffvit_small_patch16
    diffvit benchmark models --model RUN PLAIN --dataset FOLDER --batch-size 1,32         # with accuracy and agreement
    diffvit benchmark models --model clip:ViT-B-32 clip:RN50 --images 8                   # with random weights
    diffvit benchmark models --model resnet50 --device cuda --precision fp32,bf16,fp16    # on a GPU

The networks of one batch size are timed in turns, so that other load on the machine affects all of them. Of CLIP, the
image tower is measured; with weights and a dataset, CLIP classifies the images by the names of their classes.
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
from ...data.splits import EvaluationSplit
from ...errors import InputError, require_at_least, require_device
from ...files import write_atomically, write_csv
from ...models.pretrained import short_names
from ...options import CheckedOptions, check_value
from ...output import output_folder
from ...studies.inference_speed import (
    check_candidate,
    compare_precisions,
    has_weights,
    load_candidate,
    plot_throughput,
    time_candidates,
)
from ...studies.timing import PRECISIONS, emulation_note, hardware_name
from ...zero_shot.clip import PREFIX, names_weights
from ...zero_shot.imagenet_names import spoken_names
from ...zero_shot.prompts import auto_templates

FIELDS = (
    "model", "precision", "batch_size", "p50_ms", "p90_ms", "images_per_second", "speed", "speed_low", "speed_high",
    "weights_mb", "peak_mb", "load_s", "agreement", "cosine", "largest_difference", "accuracy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OptionalDataset(DatasetConfig):
    dataset: str = ""
    """Dataset on the Hub, a short name, or a folder, whose test images are classified; empty: noise is classified."""


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    model: tuple[str, ...]
    """timm model names, hf-hub:NAME, folders of weights or run folders; or clip:ARCHITECTURE:TAG, clip:hf-hub:NAME or
    clip:FOLDER for CLIP, and clip:ARCHITECTURE for its image tower with random weights."""
    data: Annotated[OptionalDataset, tyro.conf.arg(name="")] = OptionalDataset()
    pretrained: bool = False
    """Load the pretrained weights of timm's models; folders, hf-hub:NAME, and CLIP by its tag, always load theirs."""
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
    test = _test_split(options)
    for note in filter(None, (emulation_note(precision, device) for precision in precisions)):
        log0(note)
    if untrained := [model for model in options.model if not has_weights(model, options.pretrained)]:
        log0(
            f"random weights, so that same, cosine and top-1 mean nothing: {', '.join(untrained)} (--pretrained loads "
            "the weights of timm's models, clip:ARCHITECTURE:TAG those of CLIP)"
        )
    class_names = [] if test is None else test.class_names
    templates = auto_templates(options.data.dataset, class_names)
    candidates = [
        load_candidate(model, name, class_names, templates, options.pretrained, device)
        for model, name in zip(options.model, names, strict=True)
    ]
    split, where = None, f"{options.images} images of noise"
    if test is not None:
        split = test.images.shuffle(seed=0).take(min(options.images, len(test.images)))
        where = f"{len(split):,} images of {Path(options.data.dataset).name} (split: {test.name})"
    quality = compare_precisions(candidates, precisions, split, options.images, device)
    rows = []
    for size in options.batch_sizes:
        log0(f"timing batches of {size}")
        rows += time_candidates(candidates, precisions, size, options.repeats, device)
    rows = [{**row, **quality[row["model"], row["precision"]]} for row in rows]
    hardware = hardware_name(device)
    settings = dataclasses.asdict(options)
    settings |= {**settings.pop("data"), "dataset": options.data.dataset or None, "output": str(folder)}
    settings["split"] = None if test is None else test.name
    result = {**settings, "hardware": hardware, "torch": torch.__version__, "rows": rows}
    _write(result, folder)
    _print_rows(rows, hardware, where)
    log0(f"\n{folder}: the table is in benchmark.csv and benchmark.json, the throughput in benchmark.png.")
    return result


def _test_split(options: Options) -> EvaluationSplit | None:
    """Load the images to classify, and check that CLIP can be asked for their classes; None without a dataset."""
    if not options.data.dataset:
        log0("there is no --dataset, so the precisions are compared on noise, which no network was trained on")
        return None
    test = options.data.load_test()
    if any(model.startswith(PREFIX) and names_weights(model) for model in options.model):
        try:
            spoken_names(test.class_names)
        except InputError as error:
            raise InputError(f"`dataset={options.data.dataset}`: {error}") from error
    return test


def _write(result: dict[str, Any], folder: Path) -> None:
    """Write the rows as a table, the whole result, and the picture."""
    write_csv(folder / "benchmark.csv", FIELDS, result["rows"])
    write_atomically(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")
    plot_throughput(result["rows"], folder / "benchmark.png", f"Inference on {result['hardware']}")


def _print_rows(rows: list[dict[str, Any]], hardware: str, where: str) -> None:
    """Print a table with one row per network, precision and batch size."""
    log0(
        f"\nInference on {hardware}\n"
        "p50, p90: median and 90th percentile of the time per batch in ms; images/s: throughput at the median; speed:\n"
        "relative to fp32, median of the rounds; weights: memory of the weights in MiB; peak: largest memory of all\n"
        "other tensors at one time in MiB; load: seconds to create the network and load its weights; same: images\n"
        "with the top-1 class of fp32; cosine: mean cosine similarity of the outputs to those in fp32; top-1:\n"
        f"accuracy on the images whose class the network has; -: not measurable. same, cosine, top-1: {where}."
    )
    width = max(len("model"), *(len(row["model"]) for row in rows))
    titles = "prec. batch      p50      p90 images/s  speed weights   peak   load    same   cosine   top-1"
    log0(f"\n{'model':{width}s}  {titles}")
    for row in rows:
        same = "-" if row["agreement"] is None else f"{row['agreement']:.1%}"
        cosine = "-" if row["cosine"] is None else f"{row['cosine']:.5f}"
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        log0(
            f"{row['model']:{width}s}  {row['precision']:5s} {row['batch_size']:5d} {row['p50_ms']:8.1f} "
            f"{row['p90_ms']:8.1f} {row['images_per_second']:8.1f} {row['speed']:5.2f}x {row['weights_mb']:7.1f} "
            f"{row['peak_mb']:6.1f} {row['load_s']:6.2f} {same:>7s} {cosine:>8s} {accuracy:>7s}"
        )
