"""The folder of a run: the options, the environment, what happened, and the best weights."""

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
import yaml
from timm.models import is_model
from torch import nn

from .. import __version__
from ..console import log0
from ..errors import InputError
from ..files import atomic_folder, disk_errors, read_yaml, restore_folder, write_atomically
from ..models.pretrained import save_pretrained
from ..options import named
from ..output import claim_folder, new_folder, output_folder
from .checkpoint import Checkpoints
from .config import TrainConfig
from .longer import LENGTH_OPTIONS, check_longer, is_finished, keep_earlier_result

__all__ = ["RunFolder", "environment", "open_run"]

# Options that change no number of a run, so a resumed run may change them. The checkpoint knows the contents of the
# dataset and the teacher, which may have moved.
FREE_OPTIONS = (
    "output",
    "resume",
    "checkpoint_every",
    "keep_checkpoints",
    "workers",
    "trackers",
    "tracker_project",
    "dry_run",
    "attention_every",
    "push_to_hub",
    "hub_private",
    "path_in_repo",
    "dataset",
    "teacher",
)

PACKAGES = ("timm", "torch", "torchvision", "accelerate", "datasets", "albumentations", "numpy")


@contextlib.contextmanager
def open_run(config: TrainConfig, name: str) -> Iterator[tuple[Path, Path | None]]:
    """Claim the folder that a run will use, and find the checkpoint to continue from, if there is one.

    Args:
        config: options of the run.
        name: name of the run folder with `output=auto`.

    Yields:
        The folder, which is removed at the end if nothing was written into it, and the checkpoint.

    Raises:
        InputError: the folder is not empty, cannot be written or is in use, there is nothing to resume, the folder
            belongs to a run with other options, or `check_longer` refuses to train a finished run for longer.
    """
    run = config.run
    if run.resume == "never":
        with output_folder(run.output, name) as folder:
            yield folder, None
    elif run.resume == "auto":
        if run.output == "auto":
            raise InputError("`resume=auto` needs the folder of the run: pass `output`")
        folder = Path(run.output).expanduser()
        with claim_folder(folder):
            yield folder, _newest_checkpoint(folder, config)
    else:
        given = Path(run.resume).expanduser()
        is_checkpoint = given.parent.name == "checkpoints" and not (given / "config.yaml").exists()
        folder = given.parent.parent if is_checkpoint else given
        if not folder.is_dir():
            raise InputError(f"`resume={given}` is not a folder: give a run folder or one of its checkpoints")
        if run.output != "auto" and Path(run.output).expanduser().resolve() != folder.resolve():
            raise InputError(f"`output={run.output}` is not the folder of `resume={given}`: leave it out")
        is_archived = is_finished(folder, config.flat()) and not os.access(folder, os.W_OK)  # nothing is written there
        with contextlib.nullcontext() if is_archived else claim_folder(folder, "resume"):
            yield folder, _given_checkpoint(given, folder, config)


def _newest_checkpoint(folder: Path, config: TrainConfig) -> Path | None:
    """Return the newest checkpoint of a run folder; None if the folder has none, or is new."""
    if not (folder / "config.yaml").exists():
        new_folder(folder)
        return None
    _require_same_options(folder, config)
    return next(reversed(Checkpoints(folder).complete()), None)


def _given_checkpoint(given: Path, folder: Path, config: TrainConfig) -> Path | None:
    """Return the checkpoint that `resume` names: itself, or the newest one of a run folder."""
    checkpoints = [path for path in Checkpoints(folder).complete() if given in (folder, path)]
    if not checkpoints and not (folder / "result.json").exists():
        raise InputError(f"`resume={given}` is neither a complete checkpoint nor a run folder that has one")
    there = _options_there(folder, config)
    changed = _changed_options(there, config)
    is_longer = {"epochs", "max_steps"} & set(changed) and set(changed) <= set(LENGTH_OPTIONS)
    if is_longer and is_finished(folder, there):
        end = check_longer(folder, config)
        if end not in checkpoints:
            raise InputError(f"`resume={given}` is not the end of the run: give {folder} to train it for longer")
        return end
    _require_same_options(folder, config)
    return checkpoints[-1] if checkpoints else None


def _require_same_options(folder: Path, config: TrainConfig) -> None:
    there = _options_there(folder, config)
    if changed := _changed_options(there, config):
        here = _plain(config)
        differences = "; ".join(f"{named(name, there[name])} there, {here.get(name)} here" for name in changed)
        way_out = "give the same options, or another `output`"
        if is_finished(folder, there) and set(changed) <= set(LENGTH_OPTIONS):
            way_out += f"; to train it for longer, pass `resume={folder}` and more `epochs`"
        raise InputError(
            f"`resume={config.run.resume}`: {folder} is a run with other options: {differences}; {way_out}"
        )


def _options_there(folder: Path, config: TrainConfig) -> dict:
    """Return the options of config.yaml. Those that did not exist when the run began have had their default values."""
    there = read_yaml(folder / "config.yaml", "restore it from a copy, or start a new run with another `output`")
    return {**_plain(TrainConfig.from_flat(config.data.dataset, config.model.model)), **there}


def _changed_options(there: dict, config: TrainConfig) -> list[str]:
    """Return the names of the options that differ and that must not."""
    here = _plain(config)
    # The order of a stream also depends on the number of workers, and a folder of weights may have moved.
    free = set(FREE_OPTIONS) - ({"workers"} if config.data.stream else set())
    if Path(config.model.model).expanduser().is_dir() and not is_model(str(there["model"]).split(".")[0]):
        free.add("model")
    return [name for name in there if name not in free and there[name] != here.get(name)]


class RunFolder:
    """Writes a run: config.yaml, environment.json, metrics.jsonl, best/, result.json.

    Args:
        path: run folder, from `open_run`.
        config: options of the run.
        rows: number of rows of metrics.jsonl to keep when a run continues; later rows are written again.
    """

    def __init__(self, path: Path, config: TrainConfig, rows: int = 0) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.advice = f"continue with `resume={path}` if it has a checkpoint"  # for the error of a full disk
        # written first, because resume=auto recognises a run by it
        write_atomically(path / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False))
        keep_earlier_result(path, config.flat())
        restore_folder(path / "best")
        self.rows = _read_rows(path / "metrics.jsonl", rows)
        write_atomically(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))
        # For the model card: the folder need not exist any more when the run is pushed.
        is_folder = Path(config.data.dataset).expanduser().is_dir()
        self.write_json("environment.json", {**environment(), "dataset_is_folder": is_folder})

    def write_json(self, name: str, content: dict) -> None:
        """Write a JSON file atomically."""
        with disk_errors(name, self.path, self.advice):
            write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def log(self, **row) -> None:
        """Append a row to metrics.jsonl."""
        self.rows.append(row)
        with disk_errors("metrics.jsonl", self.path, self.advice):
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def save_best(self, model: nn.Module, class_names: list[str]) -> None:
        """Replace the weights in best/."""
        with atomic_folder(self.path / "best", "best/", self.advice) as folder:
            save_pretrained(model, folder, label_names=class_names)


def _read_rows(metrics: Path, count: int) -> list[dict]:
    """Read the first rows of metrics.jsonl. Nothing is lost but the curves if the file is missing."""
    if count and not metrics.exists():
        log0(f"{metrics} is missing: the log and the curves begin at the checkpoint")
        return []
    try:
        rows = [json.loads(line) for line in metrics.read_text().splitlines()[:count]] if count else []
        if len(rows) < count or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"it has {len(rows)} of {count} rows")
    except ValueError as error:
        raise InputError(f"{metrics} is damaged ({error}): delete it to continue without its rows") from error
    return rows


def _plain(config: TrainConfig) -> dict:
    """Return the options as YAML writes them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.flat().items()}


def _program() -> str:
    """Return the name of the program: a script, or the console command, also if it was started by `python -m`."""
    name = Path(sys.argv[0]).name
    return "diffvit" if name == "__main__.py" else name


def environment() -> dict:
    """Return the command, the versions and the hardware."""
    return {
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "python": platform.python_version(),
        # A checkout that is not installed has no metadata.
        "packages": {"diffvit_timm": __version__} | {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
