"""Many trainings in one folder, each of which runs once: what all studies share."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..console import counted, log0
from ..errors import DivergedError, InputError, require_at_least
from ..models.pretrained import brings_weights, load_model
from ..options import CheckedOptions, named
from ..output import is_unused, new_folder
from ..training.config import TrainConfig
from ..training.model import check_network

__all__ = [
    "HEAD_WIDTH",
    "SCRATCH",
    "Plan",
    "StudyConfig",
    "check_complete",
    "require_one_process",
    "require_study_folder",
    "require_twin",
    "train_all",
]

# Training from scratch on small images, the start of every study; the preset `scratch` has the same values.
SCRATCH = TrainConfig.from_flat(
    "cifar10", "diffvit_micro_patch4_32", pretrained=False, epochs=50, batch_size=128, opt="nmuon", lr=4e-3,
    warmup_epochs=3.0, layer_decay=1.0, augment="shift+flip", workers=0
)  # fmt: skip

HEAD_WIDTH = 32  # width of a head in studies that vary the width of the network

Plan = list[tuple[str, TrainConfig]]  # the setting and the options of every training


@dataclasses.dataclass(frozen=True)
class StudyConfig(CheckedOptions):
    """Several trainings that differ in one thing, each in its own folder below `output`."""

    train: TrainConfig = SCRATCH
    seeds: int = 3
    """Number of seeds (0, 1, ...) per setting and kind of attention."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, seeds=self.seeds)
        require_one_process()
        run, model = self.train.run, self.train.model
        if run.push_to_hub:
            raise InputError(f"`push_to_hub={run.push_to_hub}`: push the best run after the study instead")
        for name in ("seed", "resume", "dry_run", "eval_only"):
            self.require_unset(name, "is set for each training")
        if model.attn == "plain":
            raise InputError("`attn=plain` is a training of every setting anyway: leave it out")
        require_twin(model.model, "model")

    def require_unset(self, name: str, reason: str) -> None:
        """Check that an option was not given.

        Raises:
            InputError: the option differs from training from scratch (SCRATCH).
        """
        value = self.train.flat()[name]
        if value != SCRATCH.flat()[name]:
            raise InputError(f"{named(name, value)} {reason}: leave it out")

    @property
    def title(self) -> str:
        """The dataset, the length and the number of images that all trainings share, in words."""
        data, optim = self.train.data, self.train.optim
        length = f"{optim.max_steps:,} updates" if optim.max_steps else counted(optim.epochs, "epoch")
        part = f" of {data.max_train_samples:,} images" if data.max_train_samples else ""
        return f"{Path(data.dataset).name}, {length}{part}"

    def folder(self, study: str) -> Path:
        """Return the folder of the trainings, the table and the picture of a study."""
        output = self.train.run.output
        return Path(f"runs/{study}" if output == "auto" else output).expanduser()

    def single(self, study: str, name: str, **options: Any) -> TrainConfig:
        """Return the options of one training, which continues if it was killed and runs only once."""
        return self.train.replace(**{"resume": "auto", **options, "output": str(self.folder(study) / name)})


def require_one_process() -> None:
    """Check that accelerate has not started several processes.

    Raises:
        InputError: it has.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("a study runs in one process: start it without accelerate launch")


def require_study_folder(folder: Path, pattern: str) -> None:
    """Refuse a folder that contains other files, or trainings of another study.

    Args:
        folder: folder of the study.
        pattern: regular expression of the names of its training folders.

    Raises:
        InputError: the folder is used for something else, or cannot be written.
    """
    names = sorted(config.parent.name for config in folder.glob("*/config.yaml"))
    if others := [name for name in names if not re.fullmatch(pattern, name)]:
        raise InputError(
            f"`output={folder}` contains {others[0]}, which is not a training of this study: choose another folder"
        )
    if not names:
        # A training that was killed before it wrote anything has left its folder with the lock.
        begun = {path.name for path in folder.glob("*") if path.is_dir() and is_unused(path)}
        new_folder(folder, leftovers=begun)


def require_twin(model: str, parameter: str) -> None:
    """Check that a model has a plain twin.

    Raises:
        InputError: the model is not a diffvit variant, or it is a folder or a repository on the Hub.
    """
    if not model.startswith("diffvit") or brings_weights(model, parameter):
        raise InputError(f"`{parameter}={model}` has no plain twin to compare with: choose one of the diffvit models")


def train_all(plan: Plan) -> Iterator[tuple[str, TrainConfig, dict, Any]]:
    """Run the trainings of a plan, and leave out those that diverge.

    Args:
        plan: name of the setting and options of every training.

    Yields:
        The setting, the options, the result, and the model with its best weights.

    Raises:
        InputError: as `train`; before the first training, if a model of the plan cannot be created.
    """
    from ..training.recipe import train  # not above: the options of a study do not need accelerate and datasets

    networks = {
        (c.model.model, c.model.pretrained, c.model.img_size, c.model.model_kwargs, c.model.attn,
         c.optim.progressive_sizes): c
        for _, c in plan
    }  # fmt: skip
    for config in networks.values():
        check_network(config)
    finished = 0
    for number, (setting, config) in enumerate(plan, start=1):
        attn = "" if config.model.attn == "model" else f" {config.model.attn},"
        log0(f"\n{number} of {len(plan)}: {setting},{attn} seed {config.run.seed}")
        try:
            result = train(config, "study")
        except DivergedError as error:
            log0(f"this training is left out: {error}")
            continue
        except SystemExit:
            log0("the same command continues the study")
            raise
        finished += 1
        yield setting, config, result, load_model(config.run.output, parameter="output")
    if not finished:
        check_complete(plan, finished)


def check_complete(plan: Plan, finished: int) -> None:
    """Check that all trainings of a plan finished.

    Raises:
        InputError: some of them diverged.
    """
    if finished < len(plan):
        raise InputError(
            f"{len(plan) - finished} of {len(plan)} trainings diverged, and the results are those of the others: lower "
            "`lr`, raise `warmup_epochs` or use `precision=no`, with another `output`"
        )
