"""Weights and optimizer states as one process has them, also where a launch file cuts the model over several."""

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

__all__ = ["load_optimizer_state", "load_weights", "whole_optimizer_state", "whole_weights"]

# Every process takes part; what is read comes to the first one's memory, what is set each brings along.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_weights(net: nn.Module) -> dict[str, Any]:
    """The state dict of a network, on the CPU; empty but on the first process."""
    return get_model_state_dict(net, options=WHOLE)


def load_weights(net: nn.Module, weights: dict[str, Any]) -> None:
    """Set what `whole_weights` gave."""
    set_model_state_dict(net, weights, options=WHOLE)


def whole_optimizer_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer, by the names of the parameters, on the CPU; empty but on the first process."""
    return get_optimizer_state_dict(net, optimizer, options=WHOLE)


def load_optimizer_state(net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Set what `whole_optimizer_state` gave."""
    set_optimizer_state_dict(net, optimizer, state, options=WHOLE)
