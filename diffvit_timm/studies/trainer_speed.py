"""Throughput of this package's trainer beside timm's training loop, on the same model, images and settings.

timm's loop is that of its train.py: PIL images as its dataset readers give them, its transforms and loader, its
optimizer, schedule and gradient clipping, and its meters.
"""

import copy
import dataclasses
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

from ..data.decoding import decode_image
from ..data.images import MODES
from ..data.loading import model_data_config
from ..data.splits import Splits
from ..errors import InputError
from ..training.batches import TrainingBatches
from ..training.config import TrainConfig
from ..training.model import create_model
from ..training.trainer import Trainer

__all__ = ["LOADER", "OURS", "TIMM", "measure_trainers"]

LOADER, OURS, TIMM = "loader alone", "this trainer", "timm's loop"


def measure_trainers(
    config: TrainConfig, accelerator: Accelerator, splits: Splits, rounds: int, folder: Path
) -> dict[str, list[float]]:
    """Measure the throughput of the loader, of this trainer and of timm's loop, in turns.

    The loops take turns so that other load on the machine affects both. Both start from the same weights.

    Args:
        config: options of the training; a turn takes `max_steps` updates.
        accelerator: accelerator from `make_accelerator`.
        splits: splits from `load_splits`. The trainer evaluates on one batch of val and test.
        rounds: number of turns of each loop.
        folder: folder for the run folders of the trainer.

    Returns:
        Images per second of LOADER, OURS and TIMM, one number per turn.

    Raises:
        InputError: fewer training images than a batch, or as `create_model` and `Trainer`.
    """
    batch_size = config.optim.batch_size
    if len(splits.train) < batch_size:  # timm's loader drops an incomplete batch and would have no batch at all
        raise InputError(f"`batch_size={batch_size}` is more than the {len(splits.train)} training images")
    val, test = (split.take(min(batch_size, len(split))) for split in (splits.val, splits.test))
    part = dataclasses.replace(splits, val=val, test=test)
    speeds: dict[str, list[float]] = {LOADER: [], OURS: [], TIMM: []}
    for turn in range(rounds):
        torch.manual_seed(config.run.seed)
        model, _ = create_model(config.model, splits, report=False)
        twin = copy.deepcopy(model)
        trainer = Trainer(config, accelerator, model, part, folder / f"turn{turn}")
        speeds[LOADER].append(_loader_speed(trainer))
        speeds[OURS].append(trainer.fit()["images_per_second"])
        speeds[TIMM].append(_timm_speed(config, accelerator, twin, splits))
    return speeds


def _loader_speed(trainer: Trainer) -> float:
    """Return the images per second of one pass over the training images, including the start of the workers."""
    # Own batches, so that their workers end with this pass.
    batches = TrainingBatches(trainer.batches.images, trainer.config, trainer.accelerator)
    start = time.perf_counter()
    images = sum(len(batch) for batch, _ in batches.of_epoch(0))
    return images / (time.perf_counter() - start)


class _PilImages(torch.utils.data.Dataset):
    """The images as a dataset of timm gives them: decoded, and transformed by the transform that create_loader sets."""

    transform: Any = None

    def __init__(self, split: Any, in_chans: int) -> None:
        self.split = split
        self.mode = MODES[in_chans]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.split[index]
        return self.transform(decode_image(row["image"], self.mode, f"image {index}")), row["label"]


def _timm_loader(config: TrainConfig, data_config: dict[str, Any], splits: Splits, device: torch.device) -> Any:
    """Return timm's loader of the training images."""
    return create_loader(
        _PilImages(splits.train, data_config["input_size"][0]), data_config["input_size"], config.optim.batch_size,
        is_training=True, use_prefetcher=False, scale=(config.data.crop_scale, 1.0),
        interpolation=data_config["interpolation"], mean=data_config["mean"], std=data_config["std"],
        color_jitter=None, num_workers=config.data.workers, persistent_workers=False,
        pin_memory=device.type == "cuda",
    )  # fmt: skip


def _timm_speed(config: TrainConfig, accelerator: Accelerator, model: Any, splits: Splits) -> float:
    """Return the images per second of timm's loop, including the start of its workers."""
    device, optim = accelerator.device, config.optim
    loader = _timm_loader(config, model_data_config(model), splits, device)
    model = model.to(device).train()
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=optim.lr, weight_decay=optim.weight_decay, layer_decay=optim.layer_decay
    )
    scheduler = CosineLRScheduler(optimizer, optim.max_steps, t_in_epochs=False)
    loss_fn, meter = LabelSmoothingCrossEntropy(optim.label_smoothing), AverageMeter()
    start, step, images_seen = time.perf_counter(), 0, 0
    while step < optim.max_steps:
        for images, labels in loader:
            with accelerator.autocast():
                loss = loss_fn(model(images.to(device)), labels.to(device))
            loss.backward()
            dispatch_clip_grad(model.parameters(), optim.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            step, images_seen = step + 1, images_seen + len(images)
            if step % config.run.log_every == 0:
                meter.update(loss.item(), len(images))
            scheduler.step_update(step)
            if step == optim.max_steps:
                break
    return images_seen / (time.perf_counter() - start)
