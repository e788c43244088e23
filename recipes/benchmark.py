"""Networks in several precisions and batch sizes: latency, throughput, memory, and whether they still say the same.

    python recipes/benchmark.py --model clip:RN50 clip:ViT-B-32 resnet50 vit_small_patch16_224 diffvit_small_patch16
    python recipes/benchmark.py --model runs/finetuned runs/plain --dataset timm/oxford-iiit-pet --batch-size 1,32
    python recipes/benchmark.py --model resnet50 --device cuda --precision fp32,bf16,fp16 --batch-size 1,8,32,128

All of one batch size are timed in turns, so that a busy moment meets them all. clip:NAME is the image tower of a CLIP
of open_clip. Results: recipes/README.md.
"""

import copy
import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0, track
from diffvit_timm.data.augment import eval_transform
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.data.loading import model_data_config
from diffvit_timm.errors import InputError, require_at_least, require_device
from diffvit_timm.files import new_folder
from diffvit_timm.inspection.colours import LINES
from diffvit_timm.models.pretrained import check_model, load_model, model_name, short_names
from diffvit_timm.studies.timing import hardware_name, inference_step, interleaved, peak_bytes, weight_bytes
from diffvit_timm.zero_shot.class_names import class_outputs, class_scores
from diffvit_timm.zero_shot.clip import open_clip_or_stop

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLIP = "clip:"
FIELDS = (
    "model", "precision", "batch_size", "p50_ms", "p90_ms", "images_per_second", "weights_mb", "peak_mb", "load_s",
    "agreement", "largest_difference", "accuracy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    model: tuple[str, ...]
    """timm model names, hf-hub:NAME, folders (of weights, or of runs), or clip:NAME of open_clip."""
    pretrained: bool = False
    """Load the pretrained weights of timm's names; folders always bring theirs."""
    precision: str = "fp32,bf16"
    """What weights and images are cast to: fp32 and, with commas, bf16, fp16 (emulated on a CPU: ask for it to see)."""
    batch_size: str = "1,8"
    """Images at a time, with commas."""
    repeats: int = 10
    """Rounds; in each, every model takes one step."""
    dataset: str | None = None
    """Name on the Hub, or a folder, whose test images are classified; without one, noise is."""
    label_column: str = "label"
    """Column of the class labels."""
    images: int = 64
    """Images that the precisions are compared on."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, ..."""
    output: str = "runs/benchmark"
    """Folder of the tables and the picture, new or empty."""

    def __post_init__(self) -> None:
        require_at_least(1, repeats=self.repeats, images=self.images)
        if not self.model or len(set(self.model)) < len(self.model):
            raise InputError(f"--model {' '.join(self.model) or 'names none'}: name each once")
        if not {"fp32"} <= set(self.precisions) <= set(DTYPES):
            raise InputError(
                f"--precision {self.precision} must be fp32, which the others are compared with, and of bf16 and fp16"
            )
        if not all(size.isdigit() and int(size) > 0 for size in self.batch_size.split(",")):
            raise InputError(f"--batch-size {self.batch_size} must be numbers from 1 on, with commas")
        for name, given in (("precision", self.precisions), ("batch-size", self.batch_sizes)):
            if len(set(given)) < len(given):
                raise InputError(f"--{name} {','.join(map(str, given))}: give each once")
        require_device(self.device)

    @property
    def precisions(self) -> list[str]:
        return self.precision.split(",")

    @property
    def batch_sizes(self) -> list[int]:
        return [int(size) for size in self.batch_size.split(",")]


@dataclasses.dataclass
class Candidate:
    """A network, how its images are made, its outputs of each class if it has them, and how long it took to load."""

    name: str
    model: nn.Module
    data_config: dict
    indices: list[list[int]]
    seconds: float


def check_models(config: BenchmarkConfig) -> None:
    """Refuse names that are none before the first network is made."""
    for name in config.model:
        if not name.startswith(CLIP):
            check_model(model_name(name), config.pretrained, option="--model", hint="pass --no-pretrained")
        elif name.removeprefix(CLIP) not in open_clip_or_stop().list_models():
            raise InputError(f"--model {name}: open_clip knows no CLIP of that name")


def load(name: str, called: str, names: list[str], config: BenchmarkConfig) -> Candidate:
    """A network on the device, in evaluation mode; `called` by the tables, `names` are the dataset's classes."""
    start = time.perf_counter()
    if name.startswith(CLIP):
        model: Any = open_clip_or_stop().create_model(name.removeprefix(CLIP)).visual
        side = model.image_size if isinstance(model.image_size, tuple) else (model.image_size,) * 2
        settings = {"input_size": (3, *side), "mean": model.image_mean, "std": model.image_std,
                    "interpolation": "bicubic", "crop_pct": 1.0}  # fmt: skip
    else:
        found = model_name(name)
        model = load_model(found, config.pretrained or found != name, option="--model")
        settings = model_data_config(model)
    model = model.eval().to(config.device)
    seconds = time.perf_counter() - start
    try:
        indices = [] if name.startswith(CLIP) or not names else class_outputs(model, names)
    except InputError:  # a network of other classes: its accuracy is none
        indices = []
    return Candidate(called, model, settings, indices, seconds)


def cast(model: nn.Module, precision: str) -> nn.Module:
    """The network with its weights in a precision; itself in fp32."""
    return model if precision == "fp32" else copy.deepcopy(model).to(DTYPES[precision])


@torch.inference_mode()
def outputs(candidate: Candidate, model: nn.Module, precision: str, split: Any, config: BenchmarkConfig) -> Tensor:
    """What a network says of the images of a split, or of noise: (images, classes), float32."""
    if split is None:
        noise = torch.randn(config.images, *candidate.data_config["input_size"], generator=torch.manual_seed(0))
        batches: Any = noise.split(8)
    else:
        settings = candidate.data_config
        images = ImageDataset(split, eval_transform(settings), settings["input_size"][0])
        loader = DataLoader(images, batch_size=8)
        batches = (batch for batch, _ in track(loader, f"{candidate.name} {precision}", len(loader)))
    return torch.cat([model(batch.to(config.device, DTYPES[precision])).float().cpu() for batch in batches])


def quality(candidates: list[Candidate], split: Any, config: BenchmarkConfig) -> dict:
    """Of each network and precision: agreement with fp32, largest difference of an output, accuracy if it has one."""
    rows = {}
    for candidate in candidates:
        exact = outputs(candidate, candidate.model, "fp32", split, config)
        is_tower = candidate.name.startswith(CLIP)  # without classes: its outputs are the channels of an embedding
        for precision in config.precisions:
            said = exact
            if precision != "fp32":
                said = outputs(candidate, cast(candidate.model, precision), precision, split, config)
            accuracy = None
            if split is not None and candidate.indices:
                known = torch.tensor([bool(own) for own in candidate.indices])
                labels = torch.tensor(split["label"])
                right = class_scores(said, candidate.indices).argmax(1) == labels
                accuracy = right[known[labels]].float().mean().item()
            rows[candidate.name, precision] = {
                "agreement": None if is_tower else (said.argmax(1) == exact.argmax(1)).float().mean().item(),
                "largest_difference": (said - exact).abs().max().item(),
                "accuracy": accuracy,
            }
    return rows


def speed(candidates: list[Candidate], batch_size: int, config: BenchmarkConfig) -> list[dict]:
    """A row a network and precision at one batch size."""
    steps, inputs, models = {}, {}, {}
    for candidate in candidates:
        images = torch.randn(batch_size, *candidate.data_config["input_size"], device=config.device)
        for precision in config.precisions:
            key = candidate.name, precision
            models[key] = cast(candidate.model, precision)
            inputs[key] = images.to(DTYPES[precision])
            steps[key] = inference_step(models[key], inputs[key])
    seconds = interleaved(steps, config.repeats, device=config.device)
    rows = []
    for candidate in candidates:
        for precision in config.precisions:
            key = candidate.name, precision
            p50, p90 = np.quantile(seconds[key], [0.5, 0.9])
            rows.append(
                {
                    "model": candidate.name, "precision": precision, "batch_size": batch_size, "p50_ms": 1e3 * p50,
                    "p90_ms": 1e3 * p90, "images_per_second": batch_size / p50,
                    "weights_mb": weight_bytes(models[key]) / 2**20,
                    "peak_mb": peak_bytes(models[key], inputs[key]) / 2**20, "load_s": candidate.seconds,
                }
            )  # fmt: skip
    return rows


def plot(rows: list[dict], path: Path, title: str) -> None:
    """A panel a batch size: the throughput of each network in each precision."""
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    figure = Figure(figsize=(3 + 3.6 * len(sizes), 1.6 + 0.5 * len(models)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axis, size in zip(axes, sizes, strict=True):
        for place, (precision, colour) in enumerate(zip(precisions, LINES, strict=False)):
            own = [row for row in rows if (row["batch_size"], row["precision"]) == (size, precision)]
            heights = np.arange(len(models)) + (place - (len(precisions) - 1) / 2) * 0.8 / len(precisions)
            values = [row["images_per_second"] for row in own]
            axis.barh(heights, values, 0.75 / len(precisions), color=colour, label=precision)
        axis.set_title(f"batch {size}")
        axis.set_xlabel("images a second (median)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(models)), models)
    axes[0].invert_yaxis()
    axes[-1].legend()
    figure.savefig(path, dpi=120)


def main() -> dict:
    config = parse_config(BenchmarkConfig, description=__doc__)
    folder = new_folder(config.output)
    check_models(config)
    split, names = None, []
    if config.dataset:
        splits = load_splits(config.dataset, label_column=config.label_column)
        split, names = splits.test.shuffle(seed=0).take(min(config.images, len(splits.test))), splits.class_names
    else:
        log0("no --dataset: the precisions are compared on noise, which no network was made for")
    if config.device == "cpu" and "fp16" in config.precisions:
        log0("fp16 on a CPU is emulated, and slow: it says nothing of fp16 on a GPU")
    candidates = [load(*both, names, config) for both in zip(config.model, short_names(config.model), strict=True)]
    same = quality(candidates, split, config)
    rows = [row for size in config.batch_sizes for row in speed(candidates, size, config)]
    rows = [{**row, **same[row["model"], row["precision"]]} for row in rows]
    hardware = hardware_name(config.device)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "benchmark.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, folder / "benchmark.png", f"Inference on {hardware}")
    log0(f"\n{'model':28s} precision batch   p50 ms   p90 ms images/s weights MB  peak MB load s same top-1 accuracy")
    for row in rows:
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        agreement = "-" if row["agreement"] is None else f"{row['agreement']:.1%}"
        log0(
            f"{row['model']:28s} {row['precision']:9s} {row['batch_size']:5d} {row['p50_ms']:8.1f} "
            f"{row['p90_ms']:8.1f} {row['images_per_second']:8.1f} {row['weights_mb']:10.1f} {row['peak_mb']:8.1f} "
            f"{row['load_s']:6.2f} {agreement:>10s} {accuracy}"
        )
    result = {**dataclasses.asdict(config), "hardware": hardware, "torch": torch.__version__, "rows": rows}
    (folder / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    run(main)
