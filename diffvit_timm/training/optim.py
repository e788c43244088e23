"""The optimizer and its learning rate: timm's optimizer with layer decay, linear warm-up and cosine decay."""

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2

from .config import OptimConfig

__all__ = ["build_optimizer", "build_scheduler", "warmup_cosine"]


def build_optimizer(model: Any, config: OptimConfig) -> torch.optim.Optimizer:
    """Create timm's optimizer with layer decay. Biases, norms, lambda vectors and tokens have no weight decay.

    Muon (https://kellerjordan.github.io/posts/muon) only updates the matrices between two layers. The head, tokens,
    position embeddings and vectors are updated by AdamW. Muon's steps are scaled to AdamW's size, so that both use one
    learning rate.
    """
    head = [f"{name}.*" for name, module in model.named_modules() if module is model.get_classifier()]
    optimizer = create_optimizer_v2(
        model,
        config.opt,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=0.95,  # only Muon uses it
        fallback_list=head,
        fallback_no_weight_decay=True,
        layer_decay=config.layer_decay,
    )
    for group in optimizer.param_groups:  # timm writes lr_scale, but only its own schedulers apply it
        group["lr"] = config.lr * group.pop("lr_scale")
    return optimizer


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Return the factor on the learning rate of update `step`, counted from 0.

    Args:
        step: number of the update.
        warmup: updates of linear warm-up.
        total: updates of the training; the cosine ends at 0 there.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def warmup_updates(config: OptimConfig, updates_per_epoch: int, total: int) -> int:
    """Return the number of warm-up updates, at most `total`."""
    return min(round(config.warmup_epochs * updates_per_epoch), total)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimConfig, updates_per_epoch: int, total: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Create the learning rate schedule, with one step per update and `total` updates."""
    warmup = warmup_updates(config, updates_per_epoch, total)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
