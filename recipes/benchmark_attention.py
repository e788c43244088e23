"""How fast differential attention is beside plain attention: models timed in turns, medians of paired ratios.

    python recipes/benchmark_attention.py                                          # tiny, 224 px, about 3 minutes
    python recipes/benchmark_attention.py --model diffvit_small_patch16 --batch-size 8
    python recipes/benchmark_attention.py --img-sizes 224 384 1024 --batch-size 2 --steps inference
    python recipes/benchmark_attention.py --compile --device cuda --batch-size 128

Compared: the plain ViT (timm's own blocks), versions 1 and 2, and timm's differential attention, all of the same width
and depth with random weights. Results: recipes/README.md.
"""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any, Literal

import timm
import torch

import diffvit_timm  # noqa: F401 (registers the models)
from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0
from diffvit_timm.conversion.sources import vit_args
from diffvit_timm.errors import InputError, require_at_least, require_device
from diffvit_timm.models.pretrained import check_model
from diffvit_timm.studies.timing import (
    explicit_maps,
    hardware_name,
    inference_step,
    interleaved,
    kept_bytes,
    paired_ratio,
    training_step,
)

PLAIN, TIMM = "plain ViT", "timm, attn_layer='diff'"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    model: str = "diffvit_tiny_patch16"
    """One of our variants; the others are made of its width, depth and patch size."""
    img_sizes: tuple[int, ...] = (224,)
    """Sides of the images, in pixels."""
    batch_size: int = 16
    """Images a step."""
    steps: tuple[Literal["inference", "training"], ...] = ("inference", "training")
    """What to time; training is a forward and a backward pass."""
    precisions: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16")
    """Autocast to these; fp32: no autocast."""
    compile: bool = False
    """Time torch.compile's version of each model."""
    repeats: int = 15
    """Rounds; in each, every model takes one step."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, ..."""
    output: Path | None = None
    """JSON file to write, with every time."""

    def __post_init__(self) -> None:
        if not self.model.startswith("diffvit_"):
            raise InputError(
                f"--model {self.model} is none of our variants: choose one of timm.list_models('diffvit_*')"
            )
        require_at_least(1, batch_size=self.batch_size, repeats=self.repeats)
        if self.output is not None and self.output.exists():
            raise InputError(f"--output {self.output} is there already: choose another file")
        if self.output is not None and not self.output.parent.is_dir():
            raise InputError(f"--output {self.output}: there is no folder {self.output.parent}: make it first")
        require_device(self.device)


def check_sizes(config: BenchmarkConfig) -> None:
    """Refuse a size that does not divide into patches before the first one is timed."""
    with torch.device("meta"):
        side = timm.create_model(config.model).patch_embed.patch_size[0]
    for img_size in config.img_sizes:
        if img_size < side or img_size % side:
            raise InputError(f"--img-sizes {img_size} is no multiple of the patches' {side} pixels")


def make_models(config: BenchmarkConfig, img_size: int) -> dict[str, Any]:
    """The models to compare, all of one shape."""
    settings = dict(img_size=img_size, num_classes=1000)
    plain = timm.create_model(config.model, attn="plain", **settings)
    shape = {name: value for name, value in vit_args(plain).items() if name != "norm_eps"}  # ours alone
    models = {
        PLAIN: plain,
        "Diff-ViT": timm.create_model(config.model, head_norm=False, **settings),
        "Diff-ViT, head norm": timm.create_model(config.model, head_norm=True, **settings),
        "Diff-ViT, version 2": timm.create_model(config.model, attn="diff_v2", **settings),
        TIMM: timm.models.VisionTransformer(**shape, attn_layer="diff"),
    }
    return {name: model.to(config.device) for name, model in models.items()}


def reference_error(model: Any, x: torch.Tensor) -> float:
    """Relative difference of a Diff-ViT's fp32 logits to those of the explicit maps."""
    fast = inference_step(model, x)()
    with explicit_maps(model):
        exact = inference_step(model, x)()
    return ((fast - exact).norm() / exact.norm()).item()


def compiled(models: dict[str, Any]) -> dict[str, Any]:
    """Each model compiled anew: all are of one class, of whose code torch compiles eight versions at most."""
    torch.compiler.reset()
    return {name: torch.compile(model, fullgraph=True) for name, model in models.items()}


def compare(config: BenchmarkConfig, img_size: int) -> list[dict]:
    """Time all models at one size; a row a model, precision and kind of step."""
    torch.manual_seed(0)
    models = make_models(config, img_size)
    x = torch.randn(config.batch_size, models[PLAIN].in_chans, img_size, img_size, device=config.device)
    kept = {name: kept_bytes(model, x[:1]) for name, model in models.items()}
    log0(f"\n{config.model}, {img_size} px, batch {config.batch_size}; kept for the backward pass, plain = 1:")
    log0("  " + ", ".join(f"{name} {size / kept[PLAIN]:.2f}" for name, size in kept.items()))
    for name, model in models.items():
        if name.startswith("Diff-ViT"):
            log0(f"  {name}: logits differ from those of the explicit maps by {reference_error(model, x[:2]):.1e}")
    rows = []
    for precision, step in itertools.product(config.precisions, config.steps):
        timed = compiled(models) if config.compile else models
        make_step = training_step if step == "training" else inference_step
        steps = {name: make_step(model, x, DTYPES[precision]) for name, model in timed.items()}
        seconds = interleaved(steps, config.repeats, warmup=3 if config.compile else 1, device=config.device)
        log0(f"{step}, {precision}:            seconds   of the plain ViT's speed (quartiles)   of timm's")
        for name, times in seconds.items():
            speed, low, high = paired_ratio(times, seconds[PLAIN])
            of_timm = paired_ratio(times, seconds[TIMM])[0]
            median = statistics.median(times)
            log0(f"  {name:28s} {median:9.4f}   {speed:5.2f}x ({low:.2f} to {high:.2f})   {of_timm:25.2f}x")
            rows.append(
                dict(
                    model=name, img_size=img_size, step=step, precision=precision, seconds=times,
                    speed_of_plain=round(speed, 3), quartiles=[round(low, 3), round(high, 3)],
                    speed_of_timm=round(of_timm, 3), kept_of_plain=round(kept[name] / kept[PLAIN], 3)
                )
            )  # fmt: skip
    return rows


def main() -> dict:
    config = parse_config(BenchmarkConfig, description=__doc__)
    check_model(config.model, pretrained=False)
    check_sizes(config)
    rows = [row for img_size in config.img_sizes for row in compare(config, img_size)]
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "output"}
    result = {**settings, "hardware": hardware_name(config.device), "torch": torch.__version__}
    if config.output is not None:
        config.output.write_text(json.dumps({**result, "rows": rows}, indent=1))
    return {**result, "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in rows]}


if __name__ == "__main__":
    run(main)
