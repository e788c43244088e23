"""The settings of a report: its stages, networks, shapes and time limits."""

import dataclasses
from typing import Literal, get_args

from ...errors import require_at_least
from ...options import CheckedOptions

__all__ = ["STAGES", "Precision", "Settings", "Stage"]

Stage = Literal["check", "attention", "models-eager", "models-compiled", "trainer", "report"]
Precision = Literal["bf16", "fp16", "tf32", "fp32"]

STAGES: tuple[Stage, ...] = get_args(Stage)
HALF: tuple[Precision, ...] = ("bf16", "fp16")


@dataclasses.dataclass(frozen=True)
class Settings(CheckedOptions):
    stages: tuple[Stage, ...] = STAGES
    """Stages to run. Their order is always that of this list of choices."""
    device: str = "cuda"
    """Device to measure: cuda, cuda:1, ..., or cpu for a trial of the program."""
    models: tuple[str, ...] = ("diffvit_small_patch16", "diffvit_base_patch16", "diffvit_tiny_patch16")
    """Registered variants, diffvit_*, the most important one first. They also give the heads of the stage attention."""
    img_size: int = 224
    """Height and width of the images, in pixels."""
    batch_sizes: tuple[int, ...] = (64, 1, 256)
    """Numbers of images per step, the most important one first."""
    precisions: tuple[Precision, ...] = ("bf16", "fp16", "tf32", "fp32")
    """Precisions of the networks, the most important one first. The checks take those with 16 bits."""
    attention_precisions: tuple[Literal["bf16", "fp16"], ...] = ("bf16",)
    """Precisions of the stage attention."""
    tokens: tuple[int, ...] = (197, 577, 1025)
    """Numbers of tokens of the stage attention; all batch sizes are measured for the first one only."""
    check_tokens: tuple[int, ...] = (197, 257, 17, 1, 1025, 256, 577)
    """Numbers of tokens of the checks."""
    trainer_steps: int = 100
    """Updates per training of the stage trainer."""
    row_seconds: float = 2.0
    """Time limit in seconds of each group of steps that are compared. Rows with a shorter limit are measured again."""
    minutes: float = 7.0
    """Time limit of each stage. A later call measures the groups that were not reached."""
    workers: int = 12
    """Processes for the checks on a GPU, most of whose time is compilation; 0: the main process runs the checks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, img_size=self.img_size, trainer_steps=self.trainer_steps)
        require_at_least(0, workers=self.workers)
        for name in ("stages", "models", "batch_sizes", "precisions", "attention_precisions", "tokens", "check_tokens"):
            values = getattr(self, name)
            self.require(name, bool(values), "is empty: name at least one")
            self.require(name, len(set(values)) == len(values), "names a value twice: give each once")
        for name in ("batch_sizes", "tokens", "check_tokens"):
            self.require(name, min(getattr(self, name)) >= 1, "must be numbers from 1 on")
        for name in ("row_seconds", "minutes"):
            self.require(name, getattr(self, name) > 0, "must be above 0")
        self.require(
            "precisions", "check" not in self.stages or bool(self.check_precisions),
            "has none with 16 bits, which the stage check needs: add bf16 or fp16, or leave check out of `stages`",
        )  # fmt: skip
        is_variant = all(model.startswith("diffvit_") for model in self.models)
        self.require("models", is_variant, "must be diffvit_* variants: choose from timm.list_models('diffvit_*')")

    @property
    def check_precisions(self) -> tuple[Precision, ...]:
        """The precisions with 16 bits, which are those of the GPU kernels."""
        return tuple(precision for precision in self.precisions if precision in HALF)
