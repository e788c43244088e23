"""Experiment trackers: one project, one run per training with the name of its folder, and the same run on resume."""

import contextlib
import importlib.util
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ..console import is_main
from ..errors import InputError
from ..files import read_json, write_atomically
from .config import TrainConfig

__all__ = ["check_trackers", "finish_trackers", "log_picture", "log_row", "start_trackers"]

RUNS = "trackers.json"  # file in the run folder: project -> tracker -> its identifier of the run


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed, and that W&B has a login or is offline.

    Raises:
        InputError: a package that is missing, with the command that installs it; or no login.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"`trackers={missing[0]}` is not installed: pip install {' '.join(missing)}")
    if "wandb" in names and is_main():
        _log_in_to_wandb()


def _log_in_to_wandb() -> None:
    """Read the login of W&B, which asks for it on a terminal, but not if WANDB_MODE is offline."""
    import wandb

    try:
        with contextlib.redirect_stdout(sys.stderr):
            wandb.login()
    except wandb.errors.UsageError as error:
        raise InputError(
            f"`trackers=wandb` cannot log in: {error} Without a network, set WANDB_MODE=offline, and upload the run "
            "later by wandb sync"
        ) from error


def start_trackers(accelerator: Accelerator, config: TrainConfig, output: Path, step: int) -> None:
    """Start a run of each tracker, with the name of the run folder, or continue the one that the folder has begun.

    Args:
        accelerator: accelerator from `make_accelerator`.
        config: options of the training.
        output: run folder, which has been created.
        step: number of updates that are done.

    Raises:
        InputError: a tracker does not start.
    """
    names, project = config.run.trackers, config.run.tracker_project
    if not names:
        return
    path = output / RUNS
    known = read_json(path, "delete it to begin new runs of the trackers") if path.exists() else {}
    begun: dict[str, str] = known.get(project, {})
    name = output.resolve().name
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1},  # what was logged after the checkpoint is logged again
        "wandb": {"name": name, "id": begun.get("wandb", secrets.token_hex(4)), "resume": "allow", "dir": str(output)},
        "trackio": {"name": name, "resume": "allow" if "trackio" in begun else "never", "embed": False},
        "mlflow": {"run_name": name, "run_id": begun.get("mlflow")},
    }
    try:
        with contextlib.redirect_stdout(sys.stderr):  # trackio prints; stdout is for the result
            accelerator.init_trackers(project, init_kwargs={tracker: options[tracker] for tracker in names})
    except Exception as error:  # of a package that we do not know: no login, no server, a damaged store
        raise InputError(
            f"`trackers={' '.join(names)}`: a tracker does not start: {type(error).__name__}: {error}"
        ) from error
    settings = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in config.flat().items()}
    for tracker in accelerator.trackers:
        if tracker.name not in begun:
            tracker.store_init_configuration(settings)
    if accelerator.is_main_process:
        runs = {tracker.name: _identifier(tracker, options[tracker.name]) for tracker in accelerator.trackers}
        write_atomically(path, json.dumps({**known, project: {**begun, **runs}}, indent=2) + "\n")


def _identifier(tracker: Any, options: dict[str, Any]) -> str:
    """Return by what a tracker recognises its run."""
    return tracker.tracker.info.run_id if tracker.name == "mlflow" else options.get("id") or tracker.name


def log_row(accelerator: Accelerator, row: dict[str, Any], step: int) -> None:
    """Log a row of metrics.jsonl: its numbers, and its lists as NAME/INDEX."""
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
    layers = {f"{name}/{i}": x for name, value in row.items() if isinstance(value, list) for i, x in enumerate(value)}
    accelerator.log({**numbers, **layers}, step=step)


def log_picture(accelerator: Accelerator, name: str, path: Path, step: int) -> None:
    """Log a picture to the trackers that accept one.

    Args:
        accelerator: accelerator whose trackers have started.
        name: name of the picture in the trackers.
        path: PNG file.
        step: number of updates that are done.
    """
    for tracker in accelerator.trackers:
        if tracker.name == "mlflow":
            tracker.log_artifact(str(path))
        elif tracker.name == "trackio":
            import trackio

            tracker.log({name: trackio.Image(path)}, step=step)
        elif hasattr(tracker, "log_images"):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))[None]  # (1, H, W, 3)
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels}, step=step, **options)


def finish_trackers(accelerator: Accelerator) -> None:
    """End the runs of the trackers, so that another training of this process begins its own."""
    with contextlib.redirect_stdout(sys.stderr):
        for tracker in accelerator.trackers:
            if tracker.name == "trackio":  # the finish of accelerate leaves a run that ends, and prints, at exit
                import trackio

                trackio.finish()
            else:
                tracker.finish()
    accelerator.trackers = []
