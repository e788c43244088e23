"""The optimizer and its learning rates: timm's optimizer with layer decay, linear warm-up and cosine decay.

Lambda and the second queries, which a conversion adds, may have learning rates of their own.
"""

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from ..console import log0
from ..layers.adapters.projections import input_projections, mlp_rows, output_projection
from ..layers.base import Version2, differential_layers
from .optim_config import OptimConfig
from .optimizers import momentum_of

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
        momentum=momentum_of(config.opt),  # timm passes it to the optimizers that have one
        fallback_list=head,
        fallback_no_weight_decay=True,
        layer_decay=config.layer_decay,
    )
    for group in optimizer.param_groups:  # timm writes lr_scale, but only its own schedulers apply it
        group["lr"] = config.lr * group.pop("lr_scale")
    if config.lambda_lr_scale != 1:
        _scale_lambda(model, optimizer, config.lambda_lr_scale)
    if config.query_lr_scale != 1:
        _scale_rows(optimizer, _second_queries(model), config.query_lr_scale)
    return optimizer


def _scale_lambda(model: nn.Module, optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Move the parameters of lambda to groups of their own, whose learning rate is multiplied by a factor."""
    layers = differential_layers(model)
    own = {id(p) for layer in layers for name, p in layer.named_parameters() if name.startswith("lambda_")}
    if not own:
        log0("lambda_lr_scale has no effect: plain attention has no lambda")
    for group in list(optimizer.param_groups):
        parameters = [p for p in group["params"] if id(p) in own]
        if parameters:
            group["params"] = [p for p in group["params"] if id(p) not in own]
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * factor, "is_lambda": True})


def _second_queries(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return for each layer of version 2 a parameter and the indices of its rows that belong to the second queries.

    A layer with a bias of the queries has two such parameters. Frozen parameters are left out.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for layer in differential_layers(model):
        if not isinstance(layer, Version2):
            continue
        pairs = torch.arange(2 * output_projection(layer).in_features).view(layer.num_heads, 2, -1)  # (H, 2, d)
        rows = pairs[:, 1].flatten()
        linear, separate_bias = input_projections(layer)[0], getattr(layer, "q_bias", None)
        parameters = ((linear.weight, mlp_rows(layer)), (linear.bias, mlp_rows(layer)), (separate_bias, 0))
        found += [(p, first + rows) for p, first in parameters if p is not None and p.requires_grad]
    return found


def _scale_rows(optimizer: torch.optim.Optimizer, rows: list[tuple[Tensor, Tensor]], factor: float) -> None:
    """Multiply every step of some rows of parameters by a factor, as a larger learning rate would.

    The rows are a part of a fused parameter, so they cannot have a group of their own.
    """
    if not rows:
        log0("query_lr_scale has no effect: no layer of version 2 is trained")
    before: list[Tensor] = []

    def store(*_: Any) -> None:
        before[:] = [p.detach()[index.to(p.device)] for p, index in rows]

    def scale(*_: Any) -> None:
        with torch.no_grad():
            for (p, index), old in zip(rows, before, strict=True):
                index = index.to(p.device)
                p[index] = torch.lerp(old, p[index], factor)

    optimizer.register_step_pre_hook(store)
    optimizer.register_step_post_hook(scale)


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
    return min(config.warmup_steps or round(config.warmup_epochs * updates_per_epoch), total)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: OptimConfig, updates_per_epoch: int, total: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Create the learning rate schedule, with one step per update and `total` updates."""
    warmup = warmup_updates(config, updates_per_epoch, total)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))
