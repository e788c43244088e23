"""One trainer on accelerate for every recipe."""

from .config import TrainConfig, parse_config
from .console import run, say
from .model import image_batches
from .run_folder import resolve_output
from .trainer import Trainer, make_accelerator, train

__all__ = [
    "TrainConfig",
    "Trainer",
    "image_batches",
    "make_accelerator",
    "parse_config",
    "resolve_output",
    "run",
    "say",
    "train",
]
