"""Checkpoints of a run: written aside, flushed to the disk and renamed, so that one is whole or not there."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError

__all__ = ["Checkpoints", "load_checkpoint"]


class Checkpoints:
    """The folder `checkpoints/` of a run, a folder a checkpoint: `epoch-E-step-S`, E epochs evaluated, S updates done.

    Args:
        run: the run folder.
        keep: how many to keep, the newest; older ones go once a new one is whole.
    """

    def __init__(self, run: Path, keep: int = 1) -> None:
        self.folder = run / "checkpoints"
        self.keep = keep

    def whole(self) -> list[Path]:
        """Those that were written to the end, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if re.fullmatch(r"epoch-\d{5}-step-\d{9}", path.name))

    def save(self, epochs: int, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Write a checkpoint; one of the same place is left as it is.

        Args:
            epochs: epochs evaluated.
            step: updates done.
            weights: the model's state dict.
            state: the rest, of what torch.load takes with weights_only=True.

        Raises:
            InputError: the disk is full or gone; the earlier checkpoints are still there.
        """
        path = self.folder / f"epoch-{epochs:05d}-step-{step:09d}"
        if path.exists():
            return path
        aside = path.with_suffix(".new")
        try:
            for rest in (*self.folder.glob("*.new"), *self.folder.glob("*.old")):  # of a run that was killed
                shutil.rmtree(rest, ignore_errors=True)
            aside.mkdir(parents=True)
            # cloned: safetensors refuses tensors that share memory
            save_file({name: tensor.detach().clone() for name, tensor in weights.items()}, aside / "model.safetensors")
            torch.save(state, aside / "state.pt")
            for file in (*aside.iterdir(), aside):
                _flush(file)
            aside.rename(path)
            _flush(self.folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            newest = self.whole()[-1:]
            raise InputError(
                f"the checkpoint of update {step} cannot be written to {self.folder} ({error}): free some space and "
                + (f"go on with --resume {newest[0]}" if newest else "start again")
            ) from error
        for old in self.whole()[: -self.keep]:
            gone = old.with_suffix(".old")
            old.rename(gone)  # half a removal must not look like a checkpoint
            shutil.rmtree(gone, ignore_errors=True)
        return path


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the state of `Checkpoints.save`, on the CPU.

    Raises:
        InputError: it cannot be read.
    """
    try:
        weights = load_file(path / "model.safetensors")
        return weights, torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes of its readers
        raise InputError(f"--resume {path} cannot be read: {error}") from error


def _flush(path: Path) -> None:
    """Wait for the disk: a machine that stops could otherwise leave a renamed folder of empty files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
