"""The folder of a run: the options, the environment, what happened, and the best weights."""

import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import torch
import yaml
from torch import nn

from ..errors import InputError
from ..files import atomic_folder, disk_errors, new_folder, output_folder, restore_folder, write_atomically
from ..models.pretrained import save_pretrained
from ..options import named
from .checkpoint import Checkpoints
from .config import TrainConfig

__all__ = ["RunFolder", "environment", "resolve_run"]

# Options that change no number of a run, so a resumed run may change them.
FREE_OPTIONS = (
    "output",
    "resume",
    "checkpoint_every",
    "keep_checkpoints",
    "workers",
    "trackers",
    "dry_run",
    "attention_every",
    "push_to_hub",
    "hub_private",
)

PACKAGES = ("diffvit_timm", "timm", "torch", "torchvision", "accelerate", "datasets", "albumentations", "numpy")


def resolve_run(config: TrainConfig, name: str) -> tuple[Path, Path | None]:
    """Find the folder that a run will use, and the checkpoint to continue from, if there is one. Nothing is created.

    Args:
        config: options of the run.
        name: name of the run folder with `output=auto`.

    Raises:
        InputError: the folder is not empty or cannot be written, there is nothing to resume, or the folder belongs to
            a run with other options.
    """
    run = config.run
    if run.resume == "never":
        return output_folder(run.output, name), None
    if run.resume == "auto":
        if run.output == "auto":
            raise InputError("`resume=auto` needs the folder of the run: pass `output`")
        folder = Path(run.output).expanduser()
        checkpoints = Checkpoints(folder).complete()
        if not (folder / "config.yaml").exists():
            return new_folder(run.output), None
    else:
        given = Path(run.resume).expanduser()
        is_run = (given / "config.yaml").exists()
        folder = given.parent.parent if given.parent.name == "checkpoints" and not is_run else given
        checkpoints = [path for path in Checkpoints(folder).complete() if given in (folder, path)]
        if not checkpoints and not (folder / "result.json").exists():
            raise InputError(f"`resume={given}` is neither a complete checkpoint nor a run folder that has one")
        if run.output != "auto" and Path(run.output).expanduser().resolve() != folder.resolve():
            raise InputError(f"`output={run.output}` is not the folder of `resume={given}`: leave it out")
    _require_same_options(folder, config)
    return folder, checkpoints[-1] if checkpoints else None


def _require_same_options(folder: Path, config: TrainConfig) -> None:
    there, here = yaml.safe_load((folder / "config.yaml").read_text()), _plain(config)
    # the order of a stream also depends on the number of workers
    free = set(FREE_OPTIONS) - ({"workers"} if config.data.stream else set())
    changed = [name for name in here if name not in free and there.get(name) != here[name]]
    if changed:
        differences = "; ".join(f"{named(n, there.get(n))} there, {here[n]} here" for n in changed)
        raise InputError(
            f"`resume={config.run.resume}`: {folder} is a run with other options: {differences}; give the same "
            "options, or another `output`"
        )


class RunFolder:
    """Writes a run: config.yaml, environment.json, metrics.jsonl, best/, result.json.

    Args:
        path: run folder, from `resolve_run`.
        config: options of the run.
        rows: number of rows of metrics.jsonl to keep when a run continues; later rows are written again.
    """

    def __init__(self, path: Path, config: TrainConfig, rows: int = 0) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.advice = f"continue with `resume={path}` if it has a checkpoint"  # for the error of a full disk
        # written first, because resume=auto recognises a run by it
        write_atomically(path / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False))
        restore_folder(path / "best")
        metrics = path / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)[:rows] if rows else []
        self.rows: list[dict] = [json.loads(line) for line in lines]
        write_atomically(metrics, "".join(lines))
        self.write_json("environment.json", environment())

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


def _plain(config: TrainConfig) -> dict:
    """Return the options as YAML writes them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.flat().items()}


def environment() -> dict:
    """Return the command, the versions and the hardware."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
