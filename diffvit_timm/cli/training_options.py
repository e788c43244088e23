"""The options of `diffvit train`, for commands that read them from a file and start several trainings."""

import dataclasses
from typing import Annotated

import tyro

from ..training.config import TrainConfig
from .flags import option_fields
from .parser import parse_options

__all__ = ["TRAIN_FIELDS", "parse_training"]


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
