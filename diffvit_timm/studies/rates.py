"""Find a learning rate by short trainings that differ in it only, each with a whole schedule.

A range test (`Smith 2015` - https://arxiv.org/abs/1506.01186) raises the rate within one training. Its loss is that of
training images, and every rate starts where the smaller ones have led. Here every rate starts from the same weights,
sees the same batches, warms up and decays to zero, and is judged by the validation images. Test images are not read.
"""

import copy
import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from ..console import log0
from ..errors import DivergedError, InputError
from ..files import read_json, write_atomically
from ..inspection.colours import BLUE, VERMILION
from ..inspection.saving import save_figure
from ..options import CheckedOptions
from ..training.config import TrainConfig
from ..training.run_config import RunConfig
from .runs import require_one_process

if TYPE_CHECKING:
    from ..training.recipe import Parts

__all__ = ["Rate", "RateLedger", "RatesConfig", "best_rate", "plot_rates", "try_rates"]

MAX_TICKS = 8  # learning rates that the picture names
WARMUP_SHARE = 0.1  # share of the updates of a short training


@dataclasses.dataclass(frozen=True)
class RatesConfig(CheckedOptions):
    """Short trainings at several learning rates, whose other options are those of the training to come."""

    train: TrainConfig
    rates: tuple[float, float] = (1e-5, 1e-2)
    """Smallest and largest learning rate."""
    count: int = 7
    """Number of learning rates, evenly spaced on a logarithmic scale."""
    updates: int = 60
    """Updates of each training, a tenth of which is warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_process()
        low, high = self.rates
        self.require("rates", 0 < low < high, "must be two numbers above 0, the smaller one first")
        self.require("count", 3 <= self.count <= 50, "must be from 3 to 50")
        self.require("updates", self.updates >= 10, "must be at least 10")
        for name in ("resume", "dry_run", "eval_only", "push_to_hub"):
            self.train.require_default(name, "has no place in short trainings")
        self.train.data.require("val_share", self.train.data.val_share > 0, "would choose the rate on test images")

    @property
    def grid(self) -> list[float]:
        """The learning rates, in ascending order, with three digits."""
        return [float(f"{rate:.3g}") for rate in np.geomspace(*self.rates, self.count)]

    def short(self, rate: float) -> TrainConfig:
        """Return the options of the short training at a learning rate."""
        return self.train.replace(
            lr=rate, max_steps=self.updates, warmup_steps=math.ceil(WARMUP_SHARE * self.updates), keep_weights="last",
            patience=0, checkpoint_every=0.0, attention_every=0, val_every=0, trackers=(),
            tracker_project=RunConfig().tracker_project,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rate:
    """A short training.

    Attributes:
        lr: its learning rate.
        val_loss: loss on the validation images after its last update, in nats; None if it diverged.
        val_accuracy: top-1 accuracy on them.
        seconds: time that it took.
    """

    lr: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


class RateLedger:
    """The file rates.json of a study, which keeps what is finished.

    Args:
        folder: folder of the study.
        config: options, which must be those of the file but for the learning rates.

    Attributes:
        rows: finished trainings, in the order of their rates.
        val_images, classes: numbers of validation images and of classes; 0 before the first training.

    Raises:
        InputError: the file belongs to trainings with other options, or is damaged.
    """

    def __init__(self, folder: Path, config: RatesConfig) -> None:
        self.path = folder / "rates.json"
        options = config.short(1.0).replace(output="auto", workers=0).flat()
        self.options = {"updates": config.updates, **json.loads(json.dumps(options))}
        self.rows: list[Rate] = []
        self.val_images = self.classes = 0
        if self.path.exists():
            self._read(folder)

    def _read(self, folder: Path) -> None:
        content = read_json(self.path, "choose another `output`")
        try:
            self.rows = [Rate(**row) for row in content["rates"]]
            self.val_images, self.classes = content["val_images"], content["classes"]
            there = {**json.loads(json.dumps(TrainConfig.from_flat("-", "-").flat())), **content["options"]}
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.path} is not the table of a study of rates: choose another `output`") from error
        for name, value in self.options.items():
            if there.get(name) != value:
                raise InputError(
                    f"`output={folder}` has trainings with other options: {name} was {there.get(name)} and is {value}: "
                    "choose another folder"
                )

    def add(self, row: Rate) -> None:
        """Add a training, and write the file."""
        self.rows = sorted([*self.rows, row], key=lambda row: row.lr)
        rates = [dataclasses.asdict(row) for row in self.rows]
        content = {"rates": rates, "val_images": self.val_images, "classes": self.classes, "options": self.options}
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")


def try_rates(config: RatesConfig, ledger: RateLedger) -> None:
    """Run the short trainings that the ledger lacks, and add them to it.

    Raises:
        InputError: bad input.
    """
    missing = [rate for rate in config.grid if rate not in {row.lr for row in ledger.rows}]
    if not missing:
        return
    from ..training.recipe import build  # not above: --help does not wait for it

    with tempfile.TemporaryDirectory() as folder:
        parts = build(config.short(missing[0]), Path(folder))
        ledger.val_images, ledger.classes = len(parts.splits.val), len(parts.splits.class_names)
        for number, rate in enumerate(missing, start=1):
            log0(f"{number} of {len(missing)}: learning rate {rate:g}")
            ledger.add(_try_rate(config.short(rate), parts, Path(folder) / str(number)))


def _try_rate(config: TrainConfig, parts: "Parts", folder: Path) -> Rate:
    """Train a copy of the network in a temporary folder."""
    from ..training.trainer import Trainer

    class ShortTrainer(Trainer):
        """Neither announces its length nor tests: the last row of its log has the result."""

        def _announce(self) -> None:
            pass

        def _finish(self) -> dict:
            return self.run.rows[-1] if self.run else {}

        def _stop_if_asked(self, together: bool) -> None:
            if self.stop.number:
                log0("the same command continues the study")
                raise SystemExit(128 + self.stop.number)

    start, row = time.perf_counter(), dict[str, Any]()
    model = copy.deepcopy(parts.model)
    try:
        row = ShortTrainer(config, parts.accelerator, model, parts.splits, folder, None, parts.teacher).fit()
    except DivergedError as error:
        log0(f"this training is left out: {error}")
    parts.accelerator.free_memory()
    seconds = round(time.perf_counter() - start, 1)
    return Rate(config.optim.lr, row.get("val_loss"), row.get("val_accuracy"), seconds)


def best_rate(rows: Sequence[Rate]) -> Rate:
    """Return the training with the lowest validation loss.

    Raises:
        InputError: all trainings diverged.
    """
    finished = [row for row in rows if row.val_loss is not None]
    if not finished:
        raise InputError(f"all trainings diverged: try smaller `rates` than {rows[0].lr:g}")
    return min(finished, key=lambda row: row.val_loss or 0.0)


def plot_rates(rows: Sequence[Rate], best: Rate, classes_loss: float, title: str, path: Path) -> None:
    """Plot validation loss and accuracy by learning rate, with the best rate.

    Args:
        rows: trainings in the order of their rates.
        best: the one with the lowest loss.
        classes_loss: loss of a network that gives all classes the same probability; much larger ones are cut off.
        title: model, dataset and length.
        path: PNG file to write.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(title, wrap=True)
    loss, accuracy = figure.subplots(1, 2)
    finished = [row for row in rows if row.val_loss is not None]
    rates = [row.lr for row in finished]
    loss.plot(rates, [row.val_loss for row in finished], "o-", color=BLUE)
    loss.set_title("Validation loss (nats) after the last update")
    top = max(row.val_loss or 0.0 for row in finished)
    if top > 2 * classes_loss:
        loss.set_ylim(top=2 * classes_loss)
    accuracy.plot(rates, [row.val_accuracy for row in finished], "o-", color=BLUE)
    accuracy.set_title("Validation accuracy (top-1)")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axis in (loss, accuracy):
        axis.axvline(best.lr, color=VERMILION, lw=1.5, alpha=0.7, label=f"lowest loss: {best.lr:g}")
        for place, row in enumerate(row for row in rows if row.val_loss is None):
            axis.axvline(row.lr, color="0.6", lw=1, ls=":", label="diverged" if place == 0 else None)
        axis.set_xscale("log")
        shown = [row.lr for row in rows[:: -(-len(rows) // MAX_TICKS)]]
        axis.set_xticks(shown, [f"{rate:g}" for rate in shown], rotation=30)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("Learning rate")
        axis.grid(alpha=0.3)
    loss.legend()
    save_figure(figure, path)
