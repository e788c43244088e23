"""Time this trainer beside timm's training loop, with the same model, images and settings.

    diffvit benchmark training --dataset FOLDER                               # Diff-ViT-Ti at 224 pixels
    diffvit benchmark training --dataset FOLDER --max-steps 10 --rounds 2     # a short look
    diffvit benchmark training --dataset cifar10 --batch-size 128 --img-size 32 --model-kwargs patch_size=4 depth=6

The two loops take turns, so that other load on the machine affects both. Options that timm's loop does not have (opt,
augment, mixup, ema, compile, ...) only change this trainer.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from ...console import log0
from ...errors import require_at_least
from ...options import CheckedOptions
from ...training.config import TrainConfig

WITHOUT_EFFECT = (
    "epochs", "stream", "max_train_samples", "samples_per_class", "sample_seed", "label_noise", "input_noise",
    "teacher", "head_init", "output", "resume",
    "dry_run", "eval_only", "push_to_hub",
)  # fmt: skip


def _defaults() -> TrainConfig:
    return TrainConfig.from_flat(
        "timm/oxford-iiit-pet", "diffvit_tiny_patch16", pretrained=False, batch_size=16, max_steps=40
    )


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=_defaults)
    rounds: int = 5
    """Number of turns of each loop, of max_steps updates each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, rounds=self.rounds, max_steps=self.train.optim.max_steps)
        for name in WITHOUT_EFFECT:
            self.train.require_default(name, "has no effect on the speed of `max_steps` updates")
        self.train.require_default("progressive_sizes", "would give timm's loop larger images")


def main(options: Options) -> dict:
    # Not above: --help does not wait for them.
    import torch

    from ...studies.timing import hardware_name, paired_ratio
    from ...studies.trainer_speed import OURS, TIMM, measure_trainers
    from ...training.accelerator import make_accelerator
    from ...training.model import check_source

    config = options.train
    check_source(config.model)
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(config.run, Path(folder), config.optim.ema)
        splits = config.data.load()
        speeds = measure_trainers(config, accelerator, splits, options.rounds, Path(folder))
    ratio, low, high = paired_ratio(speeds[TIMM], speeds[OURS])
    hardware = hardware_name(accelerator.device)
    log0(
        f"\n{config.model.model}, batch {config.optim.batch_size}, on {hardware}\n"
        f"Images per second: median of {options.rounds} turns (lowest to highest)."
    )
    for name, values in speeds.items():
        log0(f"  {name:14s} {statistics.median(values):9.1f} ({min(values):.1f} to {max(values):.1f})")
    log0(
        f"This trainer is {ratio:.2f}x as fast as timm's loop: the median of the ratios of the turns (quartiles "
        f"{low:.2f} to {high:.2f})."
    )
    return {**speeds, "ratio": ratio, "quartiles": [low, high], "hardware": hardware, "torch": torch.__version__}
