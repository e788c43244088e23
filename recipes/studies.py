"""What ablate.py and scaling_laws.py have in common: many trainings of train_cifar.py, in a folder of their own."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_cifar import CifarConfig

from diffvit_timm.console import log0
from diffvit_timm.errors import DivergedError, InputError, require_at_least
from diffvit_timm.training.recipe import train


@dataclasses.dataclass(frozen=True)
class StudyConfig(CifarConfig):
    """Several trainings that differ in what a study varies, each in its own folder below `output`."""

    seeds: int = 3
    """Runs of each setting, seeds 0, 1, ..."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, seeds=self.seeds)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError("a study is one process: start it with python, without accelerate launch")
        if self.push_to_hub:
            raise InputError(f"--push-to-hub {self.push_to_hub}: push the best run after: python -m diffvit_timm push")
        for name in ("seed", "resume", "dry_run", "eval_only"):
            self.leave_out(name, "is set for each run")
        if self.attn == "plain":
            raise InputError("--attn plain is a run of every setting, beside the differential one: leave it out")
        require_twin(self.model, "--model")

    @property
    def title(self) -> str:
        """What all runs have in common, in words."""
        length = f"{self.max_steps:,} updates" if self.max_steps else f"{self.epochs} epochs"
        part = f" of {self.max_train_samples:,} images" if self.max_train_samples else ""
        return f"{Path(self.dataset).name}, {length}{part}"

    def folder(self, study: str) -> Path:
        """Where the runs, the table and the picture of a study lie."""
        return Path(f"runs/{study}" if self.output == "auto" else self.output).expanduser()

    def require_own_folder(self, study: str, runs: str) -> None:
        """Refuse a folder of other runs than a study's, or of files.

        Args:
            study: its name.
            runs: a pattern of their folders' names.
        """
        from diffvit_timm.files import new_folder  # not above: --help need not wait for torch

        folder = self.folder(study)
        there = sorted(config.parent.name for config in folder.glob("*/config.yaml"))
        if others := [name for name in there if not re.fullmatch(runs, name)]:
            raise InputError(f"--output {folder} holds {others[0]}, no run of this study: give another folder")
        if not there:
            new_folder(folder)

    def single(self, study: str, name: str, **options: Any) -> CifarConfig:
        """One training, which goes on where it was killed, and is not made again where it is finished."""
        base = {field.name: getattr(self, field.name) for field in dataclasses.fields(CifarConfig)}
        return CifarConfig(**{**base, "resume": "auto", **options, "output": str(self.folder(study) / name)})


def require_twin(model: str, option: str) -> None:
    """
    Raises:
        InputError: a model that has no plain twin.
    """
    if not model.startswith("diffvit"):
        raise InputError(f"{option} {model} has no plain twin to stand beside: choose one of the diffvit models")


def trained(plan: list[tuple[str, CifarConfig]]) -> Iterator[tuple[str, CifarConfig, dict, Any]]:
    """Of each training of a plan its name, its options, its result and its best weights; none where it diverged.

    Raises:
        InputError: as `train`, and before the first training where a model of the plan cannot be made.
    """
    from diffvit_timm.models.pretrained import load_model  # not above: --help need not wait for torch
    from diffvit_timm.training.model import check_variant

    for config in {(config.model, config.model_kwargs, config.attn): config for _, config in plan}.values():
        check_variant(config)
    finished = 0
    for number, (name, config) in enumerate(plan, start=1):
        log0(f"\n{number} of {len(plan)}: {name}, {config.attn}, seed {config.seed}")
        try:
            result = train(config, "study")
        except DivergedError as error:
            log0(f"without this one: {error}")
            continue
        except SystemExit:
            log0("the study goes on with the command that began it")
            raise
        finished += 1
        yield name, config, result, load_model(f"local-dir:{config.output}/best", option="--output")
    if not finished:
        require_whole(plan, finished)


def require_whole(plan: list[tuple[str, CifarConfig]], finished: int) -> None:
    """
    Raises:
        InputError: some trainings of a plan diverged.
    """
    if finished < len(plan):
        raise InputError(
            f"{len(plan) - finished} of {len(plan)} trainings diverged, and the results are of the others: lower --lr, "
            "raise --warmup-epochs or use --precision no, with another --output"
        )
