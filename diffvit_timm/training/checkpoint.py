"""Checkpoints of a run, written atomically: a checkpoint is complete, or it does not exist."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checksums import CHECKSUMS, check_checksums
from ..console import log0
from ..errors import InputError
from ..files import atomic_folder, remove_folder

__all__ = ["Checkpoints", "checkpoint_step", "load_checkpoint"]


class Checkpoints:
    """The folder `checkpoints/` of a run, with one folder per checkpoint: epoch-E-step-S after E epochs, S updates.

    Args:
        run: run folder.
        keep: number of newest checkpoints to keep; older ones are removed when a new one is complete.
    """

    def __init__(self, run: Path, keep: int = 1) -> None:
        self.folder = run / "checkpoints"
        self.keep = keep

    def complete(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (path for path in self.folder.iterdir() if re.fullmatch(r"epoch-\d{5}-step-\d{9}", path.name))
        return sorted(found, key=checkpoint_step)

    def save(self, epochs: int, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> Path:
        """Write a checkpoint, unless there already is one of the same update.

        Args:
            epochs: number of epochs evaluated.
            step: number of updates done.
            weights: state dict of the model.
            state: everything else, limited to what torch.load accepts with weights_only=True.

        Raises:
            InputError: the disk is full or broken; the earlier checkpoints still exist.
        """
        path = self.folder / f"epoch-{epochs:05d}-step-{step:09d}"
        if path.exists():
            return path
        for leftover in (*self.folder.glob("*.new"), *self.folder.glob("*.old")):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        newest = self.complete()[-1:]
        advice = f"continue with `resume={newest[0]}`" if newest else "start again"
        with atomic_folder(path, f"the checkpoint of update {step}", advice) as folder:
            # cloned, because safetensors refuses tensors that share memory
            copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
            save_file(copies, folder / "model.safetensors")
            torch.save(state, folder / "state.pt")
        for old in self.complete()[: -self.keep]:
            remove_folder(old)
        return path

    def remove_after(self, path: Path) -> None:
        """Remove the checkpoints that are newer than `path`, from which a run continues and writes them again."""
        for newer in (other for other in self.complete() if checkpoint_step(other) > checkpoint_step(path)):
            remove_folder(newer)


def checkpoint_step(path: Path) -> int:
    """Return the number of updates in the name of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load the weights and the state that `Checkpoints.save` wrote, on the CPU.

    Raises:
        InputError: the checkpoint is damaged.
    """
    try:
        if (path / CHECKSUMS).exists():
            check_checksums(path)
        else:
            log0(f"{path} has no {CHECKSUMS}: its files are used without a check")
        weights = load_file(path / "model.safetensors")
        return weights, torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise anything
        others = [other.name for other in Checkpoints(path.parents[1]).complete() if other != path]
        way_out = f"continue from {others[-1]}" if others else "start a new run with another `output`"
        raise InputError(f"`resume={path}` cannot be used: {error}; {way_out}") from error
