"""The progress of a training, which a checkpoint saves and a resumed run takes up."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError

__all__ = ["TrainState"]


@dataclasses.dataclass
class TrainState:
    """Counters of a training.

    Attributes:
        step: updates done.
        epochs_done: epochs trained and evaluated.
        best: validation accuracy of the best epoch (with `class_balance` its balanced accuracy, with several labels
            per image the mean average precision), and minus its loss, which decides between equal accuracies.
        best_value: validation accuracy, or mean average precision, of the best epoch.
        epochs_since_best: epochs evaluated after the best one.
        losses: losses of the updates since the last row of metrics.jsonl, on the device.
        seconds: seconds since the start, without the time between a checkpoint and its resume.
        train_seconds: seconds of the updates only.
        last_checkpoint: update of the newest checkpoint.
        restarts: updates after which the run had ended, was trained for longer, and its schedule started anew.
    """

    step: int = 0
    epochs_done: int = 0
    best: tuple[float, float] = (-1.0, 0.0)
    best_value: float = -1.0
    epochs_since_best: int = 0
    losses: list[Tensor] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    train_seconds: float = 0.0
    last_checkpoint: int = 0
    restarts: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def restored(cls, saved: dict[str, Any], checkpoint: Path) -> "TrainState":
        """Return the state that a checkpoint saved.

        Raises:
            InputError: another version of this package saved it.
        """
        if saved.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise InputError(
                f"`resume={checkpoint}` was written by another version of diffvit_timm: continue it with that version"
            )
        return cls(**saved)

    @property
    def schedule_start(self) -> int:
        """Updates that were done when the present schedule of the learning rate started."""
        return self.restarts[-1] if self.restarts else 0
