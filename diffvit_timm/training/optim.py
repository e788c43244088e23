"""The optimizer and its schedules: timm's with layer decay, warm-up and cosine, the ramp of lambda."""

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2

from ..console import say
from .config import TrainConfig


def build_optimizer(model: Any, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer over its layer-decay groups; biases, norms, lambda vectors and tokens are not decayed.

    Muon (https://kellerjordan.github.io/posts/muon) is for the matrices between two layers: the head, tokens, position
    embeddings and vectors are AdamW's there too. Its steps are scaled to AdamW's size, so that they share a rate.
    """
    head = [f"{name}.*" for name, module in model.named_modules() if module is model.get_classifier()]
    optimizer = create_optimizer_v2(
        model,
        config.opt,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=0.95,  # of Muon; AdamW has none
        fallback_list=head,
        fallback_no_weight_decay=True,
        layer_decay=config.layer_decay,
    )
    for group in optimizer.param_groups:  # timm writes lr_scale and leaves acting on it to its own schedulers
        group["lr"] = config.lr * group.pop("lr_scale")
    return optimizer


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate of update `step`, from 0: linear up to 1 over `warmup` updates, cosine to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, updates_per_epoch: int, total: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """One step an update, of `total`."""
    warmup = min(round(config.warmup_epochs * updates_per_epoch), total)
    if warmup == total:
        say(f"--warmup-epochs {config.warmup_epochs:g} is the whole training, which never comes to --lr {config.lr:g}")
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))


def lambda_ramp(step: int, start: float, target: float, updates: float) -> float:
    """lambda_init of update `step`, from 1: a line from `start` to `target` over `updates` updates, then constant."""
    return start + (target - start) * min(1.0, step / updates)
