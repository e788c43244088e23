"""Time networks with differential attention beside the plain ViT, for inference and training.

    diffvit benchmark attention                                                 # tiny, 224 pixels, about 3 minutes
    diffvit benchmark attention --model diffvit_small_patch16 --batch-size 8
    diffvit benchmark attention --img-sizes 224 384 1024 --batch-size 2 --steps inference
    diffvit benchmark attention --compile --device cuda --batch-size 128        # on a GPU

The networks are the plain ViT with timm's own blocks, versions 1 and 2, and timm's differential attention, all of the
same width and depth, with random weights.
"""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any, Literal

import timm
import torch

from ...console import log0
from ...errors import InputError, require_at_least, require_device
from ...files import write_atomically
from ...models.pretrained import check_name
from ...options import CheckedOptions
from ...studies.attention_speed import (
    PLAIN,
    Step,
    make_networks,
    reference_error,
    relative_kept_bytes,
    relative_speeds,
    time_step,
)
from ...studies.timing import emulation_note, hardware_name


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    model: str = "diffvit_tiny_patch16"
    """A registered variant, diffvit_*; the other networks get its width, depth and patch size."""
    img_sizes: tuple[int, ...] = (224,)
    """Heights and widths of the images, in pixels."""
    batch_size: int = 16
    """Number of images per step."""
    steps: tuple[Step, ...] = ("inference", "training")
    """Steps to time; training is a forward and a backward pass."""
    precisions: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16")
    """Precisions of autocast; fp32: no autocast. Many CPUs emulate fp16."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    repeats: int = 15
    """Number of rounds; in each round every network takes one step."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    output: Path | None = None
    """New JSON file for the result with every time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_variant = self.model.startswith("diffvit_")
        self.require("model", is_variant, "must be a diffvit_* variant: choose one of timm.list_models('diffvit_*')")
        require_at_least(1, batch_size=self.batch_size, repeats=self.repeats)
        if self.output is not None:
            folder = self.output.parent
            self.require("output", not self.output.exists(), "exists already: choose another file")
            self.require("output", folder.is_dir(), f"needs the folder {folder}, which does not exist: create it first")


def main(options: Options) -> dict:
    require_device(options.device)
    check_name(options.model)
    _check_sizes(options)
    hardware = hardware_name(options.device)
    log0(
        f"{options.model} on {hardware}\n"
        "s: median time per step in seconds; of plain: speed relative to the plain ViT (2.00x is twice as fast), the "
        "median of the\nrounds with its quartiles; of timm: speed relative to timm's differential attention."
    )
    for note in filter(None, (emulation_note(precision, options.device) for precision in options.precisions)):
        log0(note)
    rows = [row for img_size in options.img_sizes for row in _compare(options, img_size)]
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name != "output"}
    result = {**settings, "hardware": hardware, "torch": torch.__version__}
    if options.output is not None:
        write_atomically(options.output, json.dumps({**result, "rows": rows}, indent=1) + "\n")
        log0(f"\n{options.output}: every time in seconds, and the numbers above.")
    return {**result, "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in rows]}


def _check_sizes(options: Options) -> None:
    """Refuse images that do not divide into patches, before the first size is timed."""
    with torch.device("meta"):
        side = timm.create_model(options.model).patch_embed.patch_size[0]
    for img_size in options.img_sizes:
        if img_size < side or img_size % side:
            raise InputError(f"`img_sizes={img_size}` must be a multiple of {side}, the side of a patch in pixels")


def _compare(options: Options, img_size: int) -> list[dict[str, Any]]:
    """Time all networks at one size, and print the tables; returns one row per network, precision and step."""
    torch.manual_seed(0)
    networks = make_networks(options.model, img_size, options.device)
    x = torch.randn(options.batch_size, networks[PLAIN].in_chans, img_size, img_size, device=options.device)
    kept = relative_kept_bytes(networks, x[:1])
    log0(f"\n{img_size} pixels, batch {options.batch_size}; memory kept for the backward pass, relative to plain:")
    log0("  " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in kept.items()))
    for name, network in networks.items():
        if name.startswith("Diff-ViT"):
            error = reference_error(network, x[:2])
            log0(f"  {name}: the logits differ from those of explicit maps by {error:.1e} of their norm")
    rows = []
    for precision, step in itertools.product(options.precisions, options.steps):
        seconds = time_step(networks, x, step, precision, options.repeats, options.compile)
        speeds = relative_speeds(seconds)
        _print_speeds(f"{step}, {precision}", seconds, speeds)
        for name, speed in speeds.items():
            shared = dict(model=name, img_size=img_size, step=step, precision=precision, seconds=seconds[name])
            rows.append({**shared, **speed, "kept_of_plain": round(kept[name], 3)})
    return rows


def _print_speeds(title: str, seconds: dict[str, list[float]], speeds: dict[str, dict[str, Any]]) -> None:
    log0(f"{title:28s} {'s':>9s}   of plain                 of timm")
    for name, row in speeds.items():
        median, (low, high) = statistics.median(seconds[name]), row["quartiles"]
        log0(
            f"  {name:26s} {median:9.4f}   {row['speed_of_plain']:5.2f}x ({low:.2f} to {high:.2f})   "
            f"{row['speed_of_timm']:8.2f}x"
        )
