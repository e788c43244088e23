"""The options of `diffvit train`, for commands that read them from a file and start several trainings."""

import dataclasses
from typing import Annotated

import tyro

from ..training.config import TrainConfig
from .flags import option_fields
from .parser import parse_options

__all__ = ["TRAIN_FIELDS", "parse_training", "training_arguments"]


@dataclasses.dataclass(frozen=True)
class _Training:
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]


TRAIN_FIELDS = option_fields(_Training)  # type of every option of a training


def parse_training(arguments: list[str]) -> TrainConfig:
    """Parse arguments of `diffvit train`.

    Raises:
        InputError: as `parse_options`.
    """
    return parse_options(_Training, arguments, prog="diffvit train").train


def training_arguments(config: TrainConfig) -> list[str]:
    """Return the arguments of `diffvit train` that give these options; those with default values are left out."""
    default = TrainConfig.from_flat(config.data.dataset, config.model.model).flat()
    arguments = ["--dataset", config.data.dataset, "--model", config.model.model]
    for name, value in config.flat().items():
        flag = "--" + name.replace("_", "-")
        if value == default[name]:
            continue
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            arguments += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments
