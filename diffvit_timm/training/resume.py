"""Check that a checkpoint belongs to a run: same data, preprocessing, teacher and processes, undamaged weights."""

import json
from pathlib import Path
from typing import Any

import torch

from ..checksums import check_unchanged
from ..console import log0
from ..data.splits import Splits
from ..errors import InputError
from ..files import restore_folder
from ..models.layer_names import encode_layers
from .teacher import weights_hash

__all__ = ["check_best", "check_same_run", "run_identity"]

# Entries of an identity that may differ. The rest must be the same.
HELD_OUT = ("val", "test")
THREADS = "CPU threads"


def run_identity(model: Any, splits: Splits, data_config: dict, teacher: Any, processes: int) -> dict[str, Any]:
    """Return what a checkpoint records of its run, identified by content, not by path.

    Args:
        model: network that is trained.
        splits: data of the run.
        data_config: data settings of the model, from `model_data_config`.
        teacher: network that is distilled from, or None.
        processes: number of processes.
    """
    return {
        "network": _network(model),
        "classes": splits.class_names,
        "preprocessing": data_config,
        "teacher": teacher and weights_hash(teacher),
        "processes": processes,
        "training images": splits.fingerprints["train"],
        **{role: splits.fingerprints[role] for role in HELD_OUT},
        THREADS: torch.get_num_threads(),
    }


def _network(model: Any) -> str:
    """Return how timm.create_model builds a network; networks of equal shapes can differ in more than their weights."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    arguments = encode_layers(getattr(model, "_model_args", {}))
    return f"{cfg.get('architecture') or type(model).__name__} {json.dumps(arguments, sort_keys=True, default=str)}"


def check_same_run(checkpoint: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Check that a checkpoint belongs to a run. Differences in held-out images or CPU threads are only logged.

    Args:
        checkpoint: folder of the checkpoint, for the error.
        there, here: `run_identity` of the checkpoint and of the run.

    Raises:
        InputError: it is a checkpoint of another run.
    """
    differences = {
        name: f"{name}: {there[name]} there, {here[name]} here"
        for name in here.keys() & there.keys()  # a checkpoint of another version has others
        if there[name] != here[name]
    }
    if wrong := [text for name, text in differences.items() if name not in (*HELD_OUT, THREADS)]:
        raise InputError(f"`resume={checkpoint}` is a checkpoint of another run: {'; '.join(wrong)}")
    for name in HELD_OUT:
        if name in differences:
            log0(f"the {name} images have changed since the checkpoint; its best epoch was chosen on the old ones")
    if THREADS in differences:
        log0(f"the run had {there[THREADS]} CPU threads and has {here[THREADS]} now: last digits can differ")


def check_best(best: Path) -> None:
    """Check the best weights so far. A continued training needs them if it finds no better ones.

    Args:
        best: folder best/ of the run.

    Raises:
        InputError: they are missing or damaged.
    """
    restore_folder(best)
    try:
        if not (best / "model.safetensors").is_file():
            raise ValueError("it has no model.safetensors")
        check_unchanged(best)
    except ValueError as error:
        raise InputError(
            f"{best} has the best weights so far and cannot be used: {error}; restore it from a copy, or start a new "
            "run with another `output`"
        ) from error
