"""The protocol of a comparison, which is fixed before its first run: arms, rates, seeds, endpoint and margin."""

import dataclasses
import hashlib
import json
import os
from typing import Any, Literal

from ...errors import InputError, require_at_least
from ...options import CheckedOptions
from ...training.config import TrainConfig

__all__ = ["Arm", "Endpoint", "Planned", "Protocol"]

Endpoint = Literal["test_accuracy", "corruption_accuracy"]
Part = Literal["tune", "test"]

# Options that change no number of a run, so they are not part of its checksum. The ledger knows the images by their
# contents, because the dataset may lie elsewhere on another machine.
WITHOUT_EFFECT = (
    "output", "resume", "checkpoint_every", "keep_checkpoints", "workers", "trackers", "tracker_project",
    "log_every", "val_every", "attention_every", "dataset"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the things that a study compares.

    Attributes:
        name: name in the tables.
        train: options of its trainings, without learning rate and seeds.
        rates: learning rates to start from, in ascending order.
    """

    name: str
    train: TrainConfig
    rates: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A training of a study: to choose the learning rate ('tune') or to compare the arms ('test')."""

    arm: str
    part: Part
    rate: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Protocol(CheckedOptions):
    """A comparison of arms, each at its own best learning rate.

    Attributes:
        title: title of the report.
        arms: the arms, in the order of the tables.
        baseline: name of the arm that the others are compared with.
        tuning_seeds: seeds of the runs that choose the learning rates.
        test_seeds: seeds of the runs that are compared, in pairs of equal seed.
        endpoint: accuracy on the test images, or its mean over corruptions of these images.
        margin: differences below this number of points count as none.
        corruption_images: number of test images to corrupt, drawn at random; 0: all.
    """

    title: str
    arms: tuple[Arm, ...]
    baseline: str
    tuning_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    endpoint: Endpoint = "test_accuracy"
    margin: float = 0.5
    corruption_images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError("a study starts its own processes: start it without accelerate launch")
        names = [arm.name for arm in self.arms]
        if len(names) < 2:
            raise InputError(f"`arms={', '.join(names)}`: a comparison needs two arms or more")
        self.require("baseline", self.baseline in names, f"is not an arm: choose one of {', '.join(names)}")
        for arm in self.arms:
            _check_rates(arm)
        self._check_seeds()
        self.require("margin", 0 < self.margin <= 100, "must be a number of points above 0, and at most 100")
        require_at_least(0, corruption_images=self.corruption_images)
        corrupts = self.endpoint == "corruption_accuracy"
        self.require(
            "corruption_images", corrupts or not self.corruption_images, "has no effect without "
            "`endpoint=corruption_accuracy`"
        )  # fmt: skip

    def _check_seeds(self) -> None:
        for name in ("tuning_seeds", "test_seeds"):
            seeds = getattr(self, name)
            self.require(name, len(set(seeds)) == len(seeds), "names a seed twice: give each once")
            self.require(name, all(0 <= seed < 2**32 for seed in seeds), "must be whole numbers from 0 to 2**32 - 1")
        self.require("tuning_seeds", len(self.tuning_seeds) >= 1, "is empty: give one seed or more")
        self.require("test_seeds", len(self.test_seeds) >= 2, "has no spread: give two seeds or more")
        if shared := sorted({*self.tuning_seeds} & {*self.test_seeds}):
            raise InputError(f"`test_seeds` and `tuning_seeds` share the seed {shared[0]}: choose other seeds for one")

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def config(self, run: Planned) -> TrainConfig:
        """Return the options of a training. Its seed also draws the training images, if they are only a part."""
        train = self.arm(run.arm).train
        draws = train.data.max_train_samples or train.data.samples_per_class
        return train.replace(lr=run.rate, seed=run.seed, **({"sample_seed": run.seed} if draws else {}))

    def checksum(self, run: Planned) -> str:
        """Return a checksum of everything in the protocol that changes the numbers of a training.

        Options with their default values are left out, so that a later version with more options knows the run.
        """
        own: dict[str, Any] = {
            name: value for name, value in self.config(run).flat().items()
            if name not in WITHOUT_EFFECT and value != _DEFAULTS.get(name)
        }  # fmt: skip
        if run.part == "test":
            own["endpoint"] = [self.endpoint, self.corruption_images]
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


def _check_rates(arm: Arm) -> None:
    given = f"`rates={' '.join(f'{rate:g}' for rate in arm.rates)}` of the arm {arm.name}"
    if len(set(arm.rates)) < 2 or len(set(arm.rates)) < len(arm.rates):
        raise InputError(f"{given} must be two different learning rates or more, each given once")
    if not all(0 < rate < float("inf") for rate in arm.rates):
        raise InputError(f"{given} must be finite numbers above 0")
    if list(arm.rates) != sorted(arm.rates):
        raise InputError(f"{given} must be in ascending order")


_DEFAULTS = TrainConfig.from_flat("-", "-").flat() | {"dataset": None, "model": None}
