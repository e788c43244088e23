"""Trainings that choose a setting, such as a learning rate. They are not tested."""

from .run_folder import RunFolder
from .trainer import Trainer

__all__ = ["UntestedTrainer"]


class UntestedTrainer(Trainer):
    """Trains as `Trainer` does, but tests no network and draws no picture; its result has no test scores."""

    def test_scores(self) -> dict:
        return {}

    def draw(self, run: RunFolder) -> None:
        pass
