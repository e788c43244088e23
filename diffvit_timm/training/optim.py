"""The optimizer and its schedules: AdamW with layer decay, warm-up and cosine, the ramp of lambda."""

import math

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from .config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over timm's layer-decay groups; biases, norms, lambda vectors and tokens are not decayed."""
    excluded = getattr(model, "no_weight_decay", None)
    groups = param_groups_layer_decay(
        model,
        weight_decay=config.weight_decay,
        no_weight_decay_list=tuple(excluded() if callable(excluded) else ()),
        layer_decay=config.layer_decay,
    )
    for group in groups:  # timm writes lr_scale and leaves acting on it to its own schedulers
        group["lr"] = config.lr * group.pop("lr_scale")
    return torch.optim.AdamW(groups, lr=config.lr)


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
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))


def lambda_ramp(step: int, start: float, target: float, updates: float) -> float:
    """lambda_init of update `step`, from 1: a line from `start` to `target` over `updates` updates, then constant."""
    return start + (target - start) * min(1.0, step / updates)
