"""Time models against each other so that a noisy machine does not decide: interleaved, pair by pair, medians."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["explicit_maps", "inference_step", "interleaved", "kept_bytes", "paired_ratio", "training_step"]


def interleaved(
    steps: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2, device: str | torch.device = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each repeat of each step; one round runs every step once, so that a busy moment meets them all.

    Args:
        steps: what to time, by name.
        repeats: rounds that count.
        warmup: rounds before them.
        device: waited for after each step, if it is not the CPU.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    wait = torch.accelerator.synchronize if torch.device(device).type != "cpu" else lambda: None
    for done in range(-warmup, repeats):
        for name, step in steps.items():
            wait()
            start = time.perf_counter()
            step()
            wait()
            if done >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratio(seconds: list[float], base: list[float]) -> tuple[float, float, float]:
    """Speed over that of `base`, round by round: the median, and the quartiles around it."""
    ratios = [b / s for s, b in zip(seconds, base, strict=True)]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def inference_step(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """A forward pass as a function; autocast to `dtype`, in evaluation mode, without gradients."""

    def step() -> Tensor:
        model.eval()
        with torch.inference_mode(), _autocast(x.device, dtype):
            return model(x)

    return step


def training_step(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """A forward and a backward pass as a function; autocast to `dtype`. The optimizer's step is the same for all."""

    def step() -> None:
        model.train()
        with _autocast(x.device, dtype):
            loss = model(x).float().logsumexp(dim=-1).mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """What a forward pass of `model` on x keeps in memory for its backward pass, the parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(x)
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in parameters)


@contextlib.contextmanager
def explicit_maps(model: nn.Module) -> Iterator[None]:
    """Attention by its explicit maps, fused nowhere in `model`, until the end of this context."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    before = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused
