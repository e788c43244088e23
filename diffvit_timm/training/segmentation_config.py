"""The options of a training for semantic segmentation."""

import dataclasses
from typing import Literal

from ..errors import require_at_least
from ..options import CheckedOptions

__all__ = ["SegmentationOptions"]


@dataclasses.dataclass(frozen=True)
class SegmentationOptions(CheckedOptions):
    """How a segmentation network is trained."""

    head: Literal["linear", "conv"] = "linear"
    """linear: a batch norm and a linear layer at every place; conv: convolutions, up to four times the resolution."""
    layers: int = 4
    """Number of last blocks (of networks with stages: last stages) whose features the head reads."""
    fine_tune: bool = False
    """Train the backbone, too; otherwise it is frozen."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 16
    """Images per update."""
    lr: float = 1e-3
    """Peak learning rate of the head; linear warm-up over a tenth of the updates, then a cosine decay."""
    backbone_lr_scale: float = 0.05
    """Factor on the learning rate of the backbone."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    augment: Literal["none", "crop", "crop+flip"] = "crop+flip"
    """Random crops, and random flips from left to right."""
    crop_scale: float = 0.5
    """Smallest share of the image area that a random crop keeps."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; no: float32."""
    seed: int = 0
    """Seed of the head, the shuffling and the augmentation."""
    workers: int = 0
    """Number of processes that decode images; 0: the main process does it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, layers=self.layers, epochs=self.epochs, batch_size=self.batch_size)
        require_at_least(0, workers=self.workers, seed=self.seed)
        for name in ("lr", "backbone_lr_scale"):
            self.require(name, getattr(self, name) > 0, "must be above 0")
        self.require("weight_decay", self.weight_decay >= 0, "must not be negative")
        self.require("crop_scale", 0 < self.crop_scale <= 1, "must be in (0, 1]")
        for name, is_read, needed in (
            ("backbone_lr_scale", self.fine_tune, "fine_tune"), ("crop_scale", self.augment != "none", "augment=crop")
        ):  # fmt: skip
            self.require(name, is_read or self.is_default(name), f"has no effect without `{needed}`")
