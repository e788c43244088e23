"""A network without weights and memory, to find out what it is before anything is downloaded or allocated."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

__all__ = ["build_blueprint", "memory_needed", "memory_of_machine"]

# More modules and parameters than this are refused, so that building ends. timm's networks have at most 4,373.
MAX_PARTS = 20_000


def build_blueprint(name: str, **kwargs: Any) -> Any:
    """Build a network on the meta device, without weights.

    Args:
        name: what timm.create_model takes. Of a repository on the Hub, only config.json is downloaded.
        **kwargs: arguments of timm.create_model.

    Raises:
        ValueError: a network of more than MAX_PARTS modules and parameters; also any error of timm.create_model.
    """
    with torch.device("meta"), _count_parts():
        return timm.create_model(name, pretrained=False, **kwargs)


@contextmanager
def _count_parts() -> Iterator[None]:
    """Refuse to build more than MAX_PARTS modules and parameters within this context."""
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_PARTS:
            raise ValueError(f"the network has more than {MAX_PARTS:,} modules and parameters")

    with ExitStack() as hooks:
        hooks.callback(register_module_module_registration_hook(add).remove)
        hooks.callback(register_module_parameter_registration_hook(add).remove)
        yield


def memory_needed(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of parameters or buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_of_machine() -> float:
    """Return the bytes of main memory; infinite where the operating system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return float("inf")
