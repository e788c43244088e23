"""Train a Diff-ViT from scratch on small images: CIFAR-10 and -100, MNIST, Fashion-MNIST, BACH, or your own.

    python recipes/train_cifar.py --config recipes/configs/mnist_nano.yaml             # 37 k parameters on MNIST
    python recipes/train_cifar.py --config recipes/configs/fashion_mnist.yaml          # 0.2 M parameters
    python recipes/train_cifar.py --config recipes/configs/cifar10_micro.yaml          # 0.8 M parameters on CIFAR-10
    python recipes/train_cifar.py --config recipes/configs/cifar10_micro.yaml --attn plain             # its plain twin
    python recipes/train_cifar.py --dataset FOLDER --epochs 1 --warmup-epochs 0.1 --max-train-samples 2000   # a minute

Expected results, with hardware and seeds: recipes/README.md.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from diffvit_timm import training
from diffvit_timm.errors import DivergedError, InputError, require_at_least
from diffvit_timm.training import TrainConfig, parse_config, run, say
from diffvit_timm.training.config import Optimizer

# Of each short name the options that it stands for.
DATASETS: dict[str, dict[str, Any]] = {
    "cifar10": {"dataset": "uoft-cs/cifar10"},
    "cifar100": {"dataset": "uoft-cs/cifar100", "label_column": "fine_label"},
    "mnist": {"dataset": "ylecun/mnist"},
    "fashion_mnist": {"dataset": "zalando-datasets/fashion_mnist"},
    "bach": {"dataset": "1aurent/BACH", "test_share": 0.25},  # 400 labelled images; those of its test split are not
}


ConfigT = TypeVar("ConfigT", bound=TrainConfig)


@dataclasses.dataclass(frozen=True)
class CifarConfig(TrainConfig):
    dataset: str = "cifar10"
    """cifar10, cifar100, mnist, fashion_mnist, bach; a name on the Hub, or a folder."""
    model: str = "diffvit_micro_patch4_32"
    """timm model name; the diffvit_nano and diffvit_micro variants are made for small images."""
    pretrained: bool = False
    """Load pretrained weights, where a model has some."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 128
    """Images an update and process, all accumulation steps together."""
    opt: Optimizer = "nmuon"
    """timm's optimizer; adamw wants a smaller --lr, 2e-3 or so."""
    lr: float = 4e-3
    """Peak learning rate."""
    warmup_epochs: float = 3.0
    """Linear warm-up of the learning rate, before its cosine decay to zero."""
    layer_decay: float = 1.0
    """Learning rate of a block over that of the next one; 1: the same for all."""
    augment: str = "shift+flip"
    """none, or of crop, shift, flip, color, randaugment, autoaugment, trivialaugment, erase, cutout; joined by +."""
    workers: int = 0
    """Processes that load images; 0: none, which small images in memory need not."""


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
        from diffvit_timm.training.run_folder import new_folder  # not above: --help need not wait for torch

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
    from diffvit_timm.hub import load_model  # not above: --help need not wait for torch
    from diffvit_timm.training.model import check_variant

    for config in {(config.model, config.model_kwargs, config.attn): config for _, config in plan}.values():
        check_variant(config)
    finished = 0
    for number, (name, config) in enumerate(plan, start=1):
        say(f"\n{number} of {len(plan)}: {name}, {config.attn}, seed {config.seed}")
        try:
            result = training.train(config, "study")
        except DivergedError as error:
            say(f"without this one: {error}")
            continue
        except SystemExit:
            say("the study goes on with the command that began it")
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


def named_dataset(config: ConfigT) -> ConfigT:
    """The configuration with what the dataset's short name stands for, but for what is given otherwise."""
    if Path(config.dataset).is_dir():  # a folder of that name
        return config
    options = DATASETS.get(config.dataset, {}).items()
    return dataclasses.replace(config, **{k: v for k, v in options if k == "dataset" or config.is_default(k)})


def main() -> dict:
    config = named_dataset(parse_config(CifarConfig, description=__doc__))
    return training.train(config, "train_cifar")


if __name__ == "__main__":
    run(main)
