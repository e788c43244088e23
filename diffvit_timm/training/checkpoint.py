"""Checkpoints of a run: written aside, flushed to the disk and renamed, so that one is whole or not there."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError
from ..files import remove_folder, whole_folder

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
        for rest in (*self.folder.glob("*.new"), *self.folder.glob("*.old")):  # of a run that was killed
            shutil.rmtree(rest, ignore_errors=True)
        newest = self.whole()[-1:]
        then = f"go on with --resume {newest[0]}" if newest else "start again"
        with whole_folder(path, f"the checkpoint of update {step}", then) as aside:
            # cloned: safetensors refuses tensors that share memory
            copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
            save_file(copies, aside / "model.safetensors")
            torch.save(state, aside / "state.pt")
        for old in self.whole()[: -self.keep]:
            remove_folder(old)
        return path

    def remove_after(self, path: Path) -> None:
        """Remove those newer than the one that a run goes on from, which makes them and their rows again."""
        for newer in (other for other in self.whole() if other.name > path.name):
            remove_folder(newer)


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
