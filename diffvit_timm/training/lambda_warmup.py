"""Warm-up of lambda_init: converted networks start with a small lambda, and may grow it while they are trained."""

from typing import Any

from ..console import log0
from ..errors import InputError
from ..layers.base import differential_layers

__all__ = ["LambdaWarmup", "lambda_ramp"]


def lambda_ramp(step: int, start: float, target: float, updates: float) -> float:
    """Return lambda_init of update `step`, counted from 1: linear from `start` to `target`, then constant.

    Args:
        step: number of the update.
        start, target: lambda_init before and after the warm-up.
        updates: length of the warm-up.
    """
    return start + (target - start) * min(1.0, step / updates)


class LambdaWarmup:
    """Moves lambda_init of every layer from its own start to a common target.

    Create it before the weights are copied or loaded: it makes lambda_init a part of the state dict.

    Args:
        model: network to train; a plain network is left as it is.
        target: lambda_init after the warm-up.
        updates: length of the warm-up.

    Raises:
        InputError: a network of version 2, which learns lambda per token.
    """

    def __init__(self, model: Any, target: float, updates: float) -> None:
        if getattr(model, "attn", None) == "diff_v2":
            raise InputError("`lambda_warmup` needs `attn=diff`: version 2 learns lambda per token")
        self.layers = differential_layers(model)
        if not self.layers:
            log0("lambda_warmup has no effect: plain attention has no lambda")
        self.target = target
        self.updates = updates
        self.starts = [layer.lambda_init.item() for layer in self.layers]
        for layer, start in zip(self.layers, self.starts, strict=True):
            layer.set_lambda_init(start)

    def apply(self, step: int) -> None:
        """Set lambda_init of update `step`, counted from 1."""
        for layer, start in zip(self.layers, self.starts, strict=True):
            layer.set_lambda_init(lambda_ramp(step, start, self.target, self.updates))
