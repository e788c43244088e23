"""A training in small: everything is built and used once, and nothing is left."""

import dataclasses
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..console import say
from ..data.datasets import Splits
from ..models.pretrained import load_model
from .config import TrainConfig
from .trainer import Trainer

__all__ = ["dry_run"]


def dry_run(
    config: TrainConfig, accelerator: Accelerator, model: Any, splits: Splits, conversion: dict | None, teacher: Any
) -> dict:
    """Two updates, two batches of validation and of test, the best weights saved and loaded; in a folder that goes.

    Args:
        config, accelerator, model, splits, conversion, teacher: of `Trainer`.

    Returns:
        What the whole training would take: updates, seconds_an_update, expected_seconds, peak_memory_gib.

    Raises:
        InputError: as `Trainer.fit`.
        RuntimeError: the saved weights are not the trained ones.
    """
    few = 2 * config.batch_size * accelerator.num_processes  # images
    val, test = (split.take(min(few, len(split))) for split in (splits.val, splits.test))
    short = dataclasses.replace(config, max_steps=2, log_every=1, checkpoint_every=0.0, trackers=())
    with tempfile.TemporaryDirectory() as folder:
        part = dataclasses.replace(splits, val=val, test=test)
        trainer = _TimedTrainer(short, accelerator, model, part, Path(folder) / "run", conversion, teacher)
        trainer.fit()
        _check_saved(trainer)
        start = time.perf_counter()
        trainer.evaluate(trainer.test_loader, "timing")
        seconds_an_image = (time.perf_counter() - start) / len(test)
        accelerator.wait_for_everyone()
    update = trainer.train_seconds - trainer.before[-1]
    updates, epochs = config.length(trainer.updates_per_epoch)
    evaluations = epochs + (updates // config.val_every if config.val_every else 0)
    seconds = updates * update + (evaluations * len(splits.val) + len(splits.test)) * seconds_an_image
    memory = _peak_memory(accelerator.device) / 2**30
    say(
        f"dry run: {updates} updates of {update:.2f} s and {evaluations} evaluations are about {seconds / 60:.0f} "
        f"minutes; at most {memory:.2f} GiB so far; saved and loaded to the same bits"
    )
    return {
        "dry_run": True,
        "updates": updates,
        "seconds_an_update": round(update, 3),
        "expected_seconds": round(seconds, 1),
        "peak_memory_gib": round(memory, 2),
    }


class _TimedTrainer(Trainer):
    """One that keeps how long it had trained before each update, also those that fp16 leaves out."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.before: list[float] = []

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        self.before.append(self.train_seconds)
        return super()._update(images, labels)


def _check_saved(trainer: Trainer) -> None:
    saved = load_model(f"local-dir:{trainer.output}/best").state_dict()
    for name, tensor in trainer.judged.state_dict().items():
        if not torch.equal(tensor.cpu(), saved[name]):
            raise RuntimeError(f"{name} of the saved weights is not that of the trained network")


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
