"""Train a finished run for longer: what may change, and what the run must still have.

The cosine of a finished run has ended at zero, so the added epochs get a schedule of their own: a warm-up to the peak
learning rate and a cosine to zero, which is a warm restart (`SGDR` - https://arxiv.org/abs/1608.03983). timm's script
would continue at the place that the longer cosine has after the epochs done.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json
from .checkpoint import Checkpoints, checkpoint_step
from .config import TrainConfig

__all__ = ["LENGTH_OPTIONS", "check_longer", "is_finished", "keep_earlier_result", "planned"]

# Options of the length and of the schedule, which a longer run may change.
LENGTH_OPTIONS = ("epochs", "max_steps", "lr", "warmup_epochs", "warmup_steps", "patience")


def planned(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the length of a run by its options, which its result records as `planned`."""
    return {name: options[name] for name in ("epochs", "max_steps")}


def is_finished(folder: Path, options: Mapping[str, Any]) -> bool:
    """Return whether a run folder has the result of the length in `options`, not only that of an earlier part."""
    return (folder / "result.json").exists() and _result(folder).get("planned") in (None, planned(options))


def keep_earlier_result(folder: Path, options: Mapping[str, Any]) -> None:
    """Rename the result of an earlier part to result-EPOCHS-epochs.json, so that result.json is that of best/."""
    if (folder / "result.json").exists() and not is_finished(folder, options):
        (folder / "result.json").replace(folder / f"result-{_result(folder)['epochs']}-epochs.json")


def _result(folder: Path) -> dict:
    return read_json(folder / "result.json", "delete it to test the best weights again")


def check_longer(folder: Path, config: TrainConfig) -> Path:
    """Return the checkpoint from which a finished run continues beyond its end.

    Args:
        folder: folder of a finished run, whose other options are those of `config`.
        config: options with the new length.

    Raises:
        InputError: the new length is not longer, or the run has no checkpoint of its end.
    """
    result, optim = _result(folder), config.optim
    name, done = ("max_steps", "updates") if optim.max_steps else ("epochs", "epochs")
    new = f"start a new run from its weights: `model={folder}` with another `output`"
    if "planned" not in result:
        raise InputError(f"`resume={config.run.resume}` is a test, or a run of another version: {new}")
    if getattr(optim, name) <= result[done]:
        raise InputError(
            f"`{name}={getattr(optim, name)}`: {folder} is finished after {result[done]} {done}: to train it for "
            f"longer, give a larger number, which includes those {done}"
        )
    end = [path for path in Checkpoints(folder).complete() if checkpoint_step(path) == result["updates"]]
    if not end:
        raise InputError(f"`resume={config.run.resume}` is finished and has no checkpoint of its end: {new}")
    return end[-1]
