"""A network without weights and memory, to find out what it is before anything is downloaded or allocated."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

__all__ = ["build_on_meta", "check_size"]

# More modules and parameters than this are refused, so that building ends. timm's networks have at most 4,373.
MAX_PARTS = 20_000
MAX_BUFFERS = 2**30  # bytes of the buffers of a saved network, such as tables of positions


def build_on_meta(name: str, **kwargs: Any) -> Any:
    """Build a network on the meta device, without weights.

    Args:
        name: what timm.create_model takes. For a repository on the Hub, only config.json is downloaded.
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


def check_size(network: nn.Module, folder: Path | None = None) -> None:
    """Check that the network of a saved config fits the machine and the files beside the config.

    Args:
        network: result of `build_on_meta`.
        folder: folder of the config and the weights; None if the weights are not on this machine yet.

    Raises:
        ValueError: it is larger than the main memory, its buffers are larger than MAX_BUFFERS, or the folder is too
            small for its weights.
    """
    if (needed := _memory_needed(network.parameters())) > _memory_of_machine():
        raise ValueError(f"its config.json describes a network of {needed / 2**30:,.0f} GiB, more than the main memory")
    if (needed := _memory_needed(network.buffers())) > MAX_BUFFERS:
        raise ValueError(
            f"its config.json describes tables of {needed / 2**30:,.1f} GiB beside the weights: img_size is too large "
            "or patch_size too small"
        )
    if folder is not None:
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        count = sum(parameter.numel() for parameter in network.parameters())
        if count > size:  # a parameter has at least one byte
            raise ValueError(
                f"its config.json describes a network of {count:,} parameters, and all files of the folder together "
                f"have {size:,} bytes: weights are missing, or belong to another network"
            )


def _memory_needed(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of parameters or buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _memory_of_machine() -> float:
    """Return the bytes of main memory; infinite where the operating system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return float("inf")
