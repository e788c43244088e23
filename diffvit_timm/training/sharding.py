"""Weights and optimizer states as one process would have them, also if a launch file shards the model."""

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

__all__ = ["full_optimizer_state", "full_weights", "load_optimizer_state", "load_weights"]

# Every process takes part. A full state is read into the memory of the first process; to set it, each process has it.
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def full_weights(net: nn.Module) -> dict[str, Any]:
    """Return the state dict of a network, on the CPU; it is empty except on the first process."""
    return get_model_state_dict(net, options=FULL)


def load_weights(net: nn.Module, weights: dict[str, Any]) -> None:
    """Set what `full_weights` returned."""
    set_model_state_dict(net, weights, options=FULL)


def full_optimizer_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer by parameter names, on the CPU; it is empty except on the first process."""
    return get_optimizer_state_dict(net, optimizer, options=FULL)


def load_optimizer_state(net: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Set what `full_optimizer_state` returned."""
    set_optimizer_state_dict(net, optimizer, state, options=FULL)
