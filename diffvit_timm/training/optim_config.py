"""The options of the optimisation: length, optimizer, learning rate, regularisation, and what is learned from."""

import dataclasses
import math
from typing import Literal

from ..errors import require_at_least
from ..options import CheckedOptions
from .optimizers import check_optimizer

__all__ = ["OptimConfig"]


@dataclasses.dataclass(frozen=True)
class OptimConfig(CheckedOptions):
    """Length of the training, optimizer, learning rate, regularisation, and what is learned from."""

    epochs: int = 4
    """Passes over the training images."""
    max_steps: int = 0
    """Number of updates, instead of epochs; 0: train for epochs."""
    patience: int = 0
    """Stop after this many epochs without a better validation result; 0: never."""
    keep_weights: Literal["best", "last"] = "best"
    """Weights to test and to save in best/: those of the best epoch on the validation images, or the last ones."""
    batch_size: int = 32
    """Batch size per process, summed over accumulation steps (accelerate: per step)."""
    grad_accum: int = 1
    """Accumulation steps per update, which split batch_size; raised automatically if the GPU runs out of memory."""
    opt: str = "adamw"
    """Optimizer of timm, as in timm.optim.list_optimizers(): adamw, lion, lamb, sgd, ... nmuon, with a larger learning
    rate, learns several times faster from scratch."""
    lr: float = 5e-4
    """Peak learning rate of the head; layer_decay lowers it towards the stem. The default is for adamw: lion needs a
    smaller one (a third to a tenth), sgd a much larger one. diffvit study rates finds one."""
    warmup_epochs: float = 0.5
    """Epochs of linear warm-up, which a cosine decay to zero follows."""
    warmup_steps: int = 0
    """Updates of linear warm-up, instead of warmup_epochs; 0: warm up for epochs."""
    weight_decay: float = 0.05
    """Weight decay, not applied to biases, norms, tokens and position embeddings."""
    layer_decay: float = 0.75
    """Factor on the learning rate from each block to the one below it, down to the stem; 1: the same for all."""
    lambda_lr_scale: float = 1.0
    """Factor on the learning rate of the parameters of lambda."""
    query_lr_scale: float = 1.0
    """Factor on the learning rate of the second queries of version 2."""
    clip_grad: float = 1.0
    """Maximum gradient norm; 0: no clipping."""
    label_smoothing: float = 0.1
    """Share of the target that is spread evenly over all classes."""
    mixup: float = 0.0
    """Alpha of mixup; 0: off. If CutMix is also on, each batch gets one of the two."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: off."""
    progressive_sizes: tuple[int, ...] = ()
    """Progressive resizing: shorter sides of the training images in pixels, in ascending order. The training has equal
    parts, one per size, and a last part at the model's size. Example: 16 24 for a model of 32 pixels. Smaller images
    train faster. A ViT needs --model-kwargs dynamic_img_size=true. In a file, [] turns off those of a preset."""
    ema: float = 0.0
    """Decay of a moving average of the weights (e.g. 0.9999), which is evaluated and saved; 0: off."""
    teacher: str | None = None
    """Network with the same classes to distil from, in any form that model takes."""
    distill_weight: float = 0.5
    """Weight of the distillation loss; the loss of the labels has the rest."""
    distill_temperature: float = 2.0
    """Temperature of the distillation loss."""
    lambda_warmup: float = 0.0
    """Epochs in which lambda (its buffer lambda_init) moves linearly to lambda_target; 0: off."""
    lambda_target: float = 0.2
    """lambda_init after lambda_warmup epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, epochs=self.epochs, batch_size=self.batch_size, grad_accum=self.grad_accum)
        for name in ("lr", "layer_decay", "lambda_lr_scale", "query_lr_scale", "distill_temperature"):
            self.require(name, getattr(self, name) > 0, "must be above 0")
        for name in (
            "max_steps", "patience", "warmup_epochs", "warmup_steps", "weight_decay", "clip_grad", "mixup", "cutmix",
            "lambda_warmup",
        ):  # fmt: skip
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("label_smoothing", "ema", "lambda_target"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        self.require(
            "patience",
            self.keep_weights == "best" or not self.patience,
            "chooses an epoch: leave out `keep_weights=last`",
        )
        self.require("distill_weight", 0 < self.distill_weight <= 1, "must be in (0, 1]")
        if not self.is_default("opt"):
            check_optimizer(self.opt)
        self.require("grad_accum", self.grad_accum <= self.batch_size, f"exceeds `batch_size={self.batch_size}`")
        sizes = self.progressive_sizes
        is_ascending = list(sizes) == sorted(set(sizes)) and all(size > 0 for size in sizes)
        self.require("progressive_sizes", is_ascending, "must be positive and in ascending order")
        self.require(
            "teacher", not (sizes and self.teacher), "needs images of its own size: leave out `progressive_sizes`"
        )
        self.require(
            "patience", not (sizes and self.patience),
            "could stop before the images have the model's size: leave out `progressive_sizes`",
        )  # fmt: skip
        for name, needed in (
            ("distill_weight", "teacher"), ("distill_temperature", "teacher"), ("lambda_target", "lambda_warmup")
        ):  # fmt: skip
            self.require(
                name, bool(getattr(self, needed)) or self.is_default(name), f"has no effect without `{needed}`"
            )

    def length(self, updates_per_epoch: int) -> tuple[int, int]:
        """Return the number of updates, and of epochs, the last of which may be incomplete."""
        updates = self.max_steps or self.epochs * updates_per_epoch
        return updates, math.ceil(updates / updates_per_epoch)
