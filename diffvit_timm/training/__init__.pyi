"""One trainer on accelerate for every recipe."""

from .accelerator import make_accelerator
from .config import TrainConfig, parse_config
from .console import one_line_errors, run, say
from .model import image_batches
from .recipe import train
from .run_folder import new_folder, resolve_output
from .trainer import Trainer

__all__ = [
    "TrainConfig",
    "Trainer",
    "image_batches",
    "make_accelerator",
    "new_folder",
    "one_line_errors",
    "parse_config",
    "resolve_output",
    "run",
    "say",
    "train",
]
