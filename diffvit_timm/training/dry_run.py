"""A dry run: build everything, use it once, estimate the time of the whole training, and leave nothing behind."""

import dataclasses
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..console import log0
from ..data.splits import Splits
from ..models.pretrained import load_model
from .config import TrainConfig
from .progressive import ProgressiveSizes
from .run_config import RunConfig
from .trainer import Trainer

__all__ = ["dry_run"]

PROJECT = RunConfig().tracker_project


def dry_run(
    config: TrainConfig, accelerator: Accelerator, model: Any, splits: Splits, conversion: dict | None, teacher: Any
) -> dict:
    """Train for two updates, evaluate two batches of val and test, save and load the weights, in a temporary folder.

    Args:
        config, accelerator, model, splits, conversion, teacher: arguments of `Trainer`.

    Returns:
        An estimate for the whole training: updates, seconds_an_update, expected_seconds, peak_memory_gib. With
        progressive sizes it is that of a training whose images all have the model's size, which takes longer.

    Raises:
        InputError: as `Trainer.fit`.
        RuntimeError: the loaded weights differ from the trained ones.
    """
    few = 2 * config.optim.batch_size * accelerator.num_processes  # images
    val, test = (split.take(min(few, len(split))) for split in (splits.val, splits.test))
    short = config.replace(
        max_steps=2, log_every=1, checkpoint_every=0.0, trackers=(), tracker_project=PROJECT, progressive_sizes=()
    )
    with tempfile.TemporaryDirectory() as folder:
        part = dataclasses.replace(splits, val=val, test=test)
        trainer = _TimedTrainer(short, accelerator, model, part, Path(folder) / "run", conversion, teacher)
        updates, epochs = config.optim.length(trainer.updates_per_epoch)
        if config.optim.progressive_sizes:
            ProgressiveSizes(trainer.learner.net, config.optim.progressive_sizes, updates)  # refuses a short training
        trainer.fit()
        _check_saved(trainer)
        start = time.perf_counter()
        trainer.evaluate(trainer.test_loader, "timing")
        seconds_per_image = (time.perf_counter() - start) / len(test)
        accelerator.wait_for_everyone()
    seconds_per_update = trainer.state.train_seconds - trainer.seconds_before[-1]
    evaluations = epochs + (updates // config.run.val_every if config.run.val_every else 0)
    evaluation_seconds = (evaluations * len(splits.val) + len(splits.test)) * seconds_per_image
    seconds = updates * seconds_per_update + evaluation_seconds
    memory = _peak_memory(accelerator.device) / 2**30
    # Smaller images take less time, so this is an upper estimate.
    bound, where = ("at most about", " at the model's size") if config.optim.progressive_sizes else ("about", "")
    log0(
        f"dry run: {bound} {seconds / 60:.0f} minutes = {updates} updates x {seconds_per_update:.2f} s (measured on "
        f"the second of two updates{where}) + {evaluations} validations and a test, {evaluation_seconds / 60:.1f} "
        f"minutes (measured on {len(test)} images). Peak memory so far: {memory:.2f} GiB. Weights that were saved "
        "and loaded are the same to the bit. Nothing is left behind."
    )
    return {
        "dry_run": True,
        "updates": updates,
        "seconds_an_update": round(seconds_per_update, 3),
        "expected_seconds": round(seconds, 3),
        "peak_memory_gib": round(memory, 2),
    }


class _TimedTrainer(Trainer):
    """Notes how long it had trained before each update, and does not announce its own length."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seconds_before: list[float] = []

    def _announce(self) -> None:
        """Print nothing: two updates are not the training that the user asked for."""

    def _log(self, **row) -> None:
        if "train_loss" in row:  # one row per update, which is written before its seconds are added
            self.seconds_before.append(self.state.train_seconds)
        super()._log(**row)


def _check_saved(trainer: Trainer) -> None:
    saved = load_model(f"local-dir:{trainer.output}/best").state_dict()
    for name, tensor in trainer.learner.saved_model().state_dict().items():
        if not torch.equal(tensor.cpu(), saved[name]):
            raise RuntimeError(f"{name} of the loaded weights differs from that of the trained network")


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
