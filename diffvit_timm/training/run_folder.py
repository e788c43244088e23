"""The folder of a run: what was asked, where it ran, what happened, and the best weights."""

import dataclasses
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
from ..files import new_folder, output_folder, recover_folder, replace, whole_folder, writing
from ..models.pretrained import save_pretrained
from .checkpoint import Checkpoints
from .config import TrainConfig

# Options that change no number of a run.
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


def resolve_run(config: TrainConfig, recipe: str) -> tuple[Path, Path | None]:
    """The folder that a run will use, and the checkpoint that it goes on from, if any; nothing is made yet.

    Raises:
        InputError: as `resolve_output`; nothing to resume, or a run of other options, with the difference.
    """
    if config.resume == "never":
        return output_folder(config.output, recipe), None
    if config.resume == "auto":
        if config.output == "auto":
            raise InputError("--resume auto needs the folder of the run: pass --output FOLDER")
        folder = Path(config.output).expanduser()
        checkpoints = Checkpoints(folder).whole()
        if not (folder / "config.yaml").exists():
            return new_folder(config.output), None
    else:
        given = Path(config.resume).expanduser()
        is_run = (given / "config.yaml").exists()
        folder = given.parent.parent if given.parent.name == "checkpoints" and not is_run else given
        checkpoints = [path for path in Checkpoints(folder).whole() if given in (folder, path)]
        if not checkpoints and not (folder / "result.json").exists():
            raise InputError(f"--resume {given} is neither a complete checkpoint nor a run folder that has one")
        if config.output != "auto" and Path(config.output).expanduser().resolve() != folder.resolve():
            raise InputError(f"--output {config.output} is not the folder of --resume {given}: leave it out")
    _require_same_options(folder, config)
    return folder, checkpoints[-1] if checkpoints else None


def _require_same_options(folder: Path, config: TrainConfig) -> None:
    there, here = yaml.safe_load((folder / "config.yaml").read_text()), _plain(config)
    free = set(FREE_OPTIONS) - ({"workers"} if config.stream else set())  # a stream's order is theirs too
    changed = [name for name in here if name not in free and there.get(name) != here[name]]
    if changed:
        differences = "; ".join(f"--{n.replace('_', '-')} {there.get(n)} there, {here[n]} here" for n in changed)
        advice = "give those, or another --output"
        raise InputError(f"--resume {config.resume}: {folder} is a run of other options: {differences}; {advice}")


class RunFolder:
    """Writes a run: config.yaml, environment.json, metrics.jsonl, best/, result.json.

    Args:
        path: the folder, of `resolve_run`.
        config: of the run.
        rows: how many rows of metrics.jsonl to go on from; those after them are made again.
    """

    def __init__(self, path: Path, config: TrainConfig, rows: int = 0) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.way_on = f"go on with --resume {path} if it has a checkpoint"  # of a full disk's error
        # first, as it is what --resume auto knows a run by
        replace(path / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False))
        recover_folder(path / "best")
        metrics = path / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)[:rows] if rows else []
        self.rows: list[dict] = [json.loads(line) for line in lines]
        replace(metrics, "".join(lines))
        self.write_json("environment.json", environment())

    def write_json(self, name: str, content: dict) -> None:
        with writing(name, self.path, self.way_on):
            replace(self.path / name, json.dumps(content, indent=2) + "\n")

    def log(self, **row) -> None:
        """Append a row to metrics.jsonl."""
        self.rows.append(row)
        with writing("metrics.jsonl", self.path, self.way_on):
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def save_best(self, model: nn.Module, class_names: list[str]) -> None:
        """Replace best/."""
        with whole_folder(self.path / "best", "best/", self.way_on) as aside:
            save_pretrained(model, aside, label_names=class_names)


def _plain(config: TrainConfig) -> dict:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def environment() -> dict:
    """Command, versions and hardware."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
