"""Images a second: of the loader alone, of this trainer, and of timm's training loop with the same model and settings.

    python recipes/throughput.py --dataset FOLDER                                    # DeiT-Ti on Oxford-IIIT Pet
    python recipes/throughput.py --dataset uoft-cs/cifar10 --batch-size 128 \\
        --model-kwargs img_size=32 patch_size=4 depth=6

The loops take turns, so that a busy moment of the machine meets both. timm's is that of its train.py: its dataset
reader's PIL images, its transforms and loader, its optimizer, schedule and gradient clipping, its meters. What it
has not (--opt, --augment, --mixup, --ema, --compile, ...) changes this trainer alone. Results: recipes/README.md.
"""

import copy
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, dispatch_clip_grad

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.splits import Splits
from diffvit_timm.data.images import MODES, decode_image
from diffvit_timm.data.loading import model_data_config
from diffvit_timm.errors import InputError, require_at_least
from diffvit_timm.studies.timing import paired_ratio
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.batches import TrainingBatches
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.model import create_model
from diffvit_timm.training.trainer import Trainer

WITHOUT_EFFECT = (
    "epochs", "stream", "test_share", "group_column", "max_train_samples", "label_noise", "input_noise", "teacher",
    "head_init", "output", "resume", "dry_run", "eval_only", "push_to_hub"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ThroughputConfig(TrainConfig):
    dataset: str = "timm/oxford-iiit-pet"
    """Name on the Hub, or a folder: parquet files, or one folder of images a class."""
    model: str = "diffvit_tiny_patch16"
    """timm model name."""
    pretrained: bool = False
    """Load the pretrained weights; the speed is the same."""
    batch_size: int = 16
    """Images an update."""
    max_steps: int = 40
    """Updates a turn."""
    rounds: int = 5
    """Turns of each loop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, rounds=self.rounds, max_steps=self.max_steps)
        for name in WITHOUT_EFFECT:
            self.leave_out(name, "has no effect on the speed of --max-steps updates")


class PilImages(torch.utils.data.Dataset):
    """The images as a dataset of timm gives them: decoded, and transformed by what create_loader sets."""

    transform: Any = None

    def __init__(self, split: Any, in_chans: int) -> None:
        self.split = split
        self.mode = MODES[in_chans]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.split[index]
        return self.transform(decode_image(row["image"], self.mode, f"image {index}")), row["label"]


def timm_loop(config: ThroughputConfig, accelerator: Accelerator, model: Any, splits: Splits) -> float:
    """Images a second of timm's loop, its workers' start included."""
    device, data_config = accelerator.device, model_data_config(model)
    loader = create_loader(
        PilImages(splits.train, data_config["input_size"][0]), data_config["input_size"], config.batch_size,
        is_training=True, use_prefetcher=False, scale=(config.crop_scale, 1.0),
        interpolation=data_config["interpolation"], mean=data_config["mean"],
        std=data_config["std"], color_jitter=None, num_workers=config.workers, persistent_workers=False,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    model = model.to(device).train()
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=config.lr, weight_decay=config.weight_decay, layer_decay=config.layer_decay
    )
    scheduler = CosineLRScheduler(optimizer, config.max_steps, t_in_epochs=False)
    loss_fn, meter = LabelSmoothingCrossEntropy(config.label_smoothing), AverageMeter()
    start, step, images_seen = time.perf_counter(), 0, 0
    while step < config.max_steps:
        for images, labels in loader:
            with accelerator.autocast():
                loss = loss_fn(model(images.to(device)), labels.to(device))
            loss.backward()
            dispatch_clip_grad(model.parameters(), config.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            step, images_seen = step + 1, images_seen + len(images)
            if step % config.log_every == 0:
                meter.update(loss.item(), len(images))
            scheduler.step_update(step)
            if step == config.max_steps:
                break
    return images_seen / (time.perf_counter() - start)


def loader_alone(trainer: Trainer) -> float:
    """Images a second of one pass over the training images, its workers' start included; they end with it."""
    batches = TrainingBatches(trainer.batches.images, trainer.config, trainer.accelerator)
    start = time.perf_counter()
    images = sum(len(batch) for batch, _ in batches.of_epoch(0))
    return images / (time.perf_counter() - start)


def main() -> dict:
    config = parse_config(ThroughputConfig, description=__doc__)
    splits = load_splits(config.dataset, config.image_column, config.label_column)
    if len(splits.train) < config.batch_size:  # timm's loader leaves such a batch out, and would have none
        raise InputError(f"--batch-size {config.batch_size} is more than the {len(splits.train)} images to train on")
    part = dataclasses.replace(splits, val=splits.val.take(config.batch_size), test=splits.test.take(config.batch_size))
    speeds: dict[str, list[float]] = {"loader alone": [], "this trainer": [], "timm's loop": []}
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(config, Path(folder))
        for turn in range(config.rounds):
            torch.manual_seed(config.seed)
            model, _ = create_model(config, splits, report=False)
            twin = copy.deepcopy(model)
            trainer = Trainer(config, accelerator, model, part, Path(folder) / f"turn{turn}")
            speeds["loader alone"].append(loader_alone(trainer))
            speeds["this trainer"].append(trainer.fit()["images_per_second"])
            speeds["timm's loop"].append(timm_loop(config, accelerator, twin, splits))
    ratio, low, high = paired_ratio(speeds["timm's loop"], speeds["this trainer"])
    for name, values in speeds.items():
        log0(f"{name:14s} {statistics.median(values):9.1f} images/s ({min(values):.1f} to {max(values):.1f})")
    spread = f"quartiles {low:.2f} to {high:.2f}, n = {config.rounds}"
    log0(f"this trainer is {ratio:.2f}x as fast as timm's loop ({spread})")
    return {**speeds, "ratio": ratio, "quartiles": [low, high]}


if __name__ == "__main__":
    run(main)
