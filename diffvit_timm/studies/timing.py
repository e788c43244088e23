"""Time models against each other so that a noisy machine does not decide: interleaved, pair by pair, medians."""

import contextlib
import platform
import random
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "explicit_maps",
    "hardware_name",
    "inference_step",
    "interleaved",
    "kept_bytes",
    "paired_ratio",
    "peak_bytes",
    "training_step",
    "weight_bytes",
]


NameT = TypeVar("NameT")


def hardware_name(device: str | torch.device) -> str:
    """What computes, for a caption: the GPU, or the processor's architecture and how many threads there are."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def interleaved(
    steps: Mapping[NameT, Callable[[], object]], repeats: int, warmup: int = 2, device: str | torch.device = "cpu"
) -> dict[NameT, list[float]]:
    """Seconds of each repeat of each step; one round runs every step once, so that a busy moment meets them all.

    Every round has an order of its own: what a step leaves in the caches and the heap is felt by the next.

    Args:
        steps: what to time, by name.
        repeats: rounds that count.
        warmup: rounds before them.
        device: waited for after each step, if it is not the CPU; CUDA keeps the time itself.
    """
    seconds: dict[NameT, list[float]] = {name: [] for name in steps}
    device = torch.device(device)
    clocks: dict[str, Callable[[Callable[[], object]], float]] = {
        "cpu": _elapsed,
        "cuda": partial(_elapsed_on_cuda, device),
    }
    elapsed = clocks.get(device.type, _elapsed_elsewhere)
    order, names = random.Random(0), list(steps)
    for done in range(-warmup, repeats):
        order.shuffle(names)
        for name in names:
            took = elapsed(steps[name])
            if done >= 0:
                seconds[name].append(took)
    return seconds


def _elapsed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _elapsed_on_cuda(device: torch.device, step: Callable[[], object]) -> float:
    """By the GPU's own clock, from where it has the first kernel to its end: where the CPU is slower, its time."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3


def _elapsed_elsewhere(step: Callable[[], object]) -> float:
    torch.accelerator.synchronize()
    start = time.perf_counter()
    step()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


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


def weight_bytes(model: nn.Module) -> int:
    """Parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operators have made and that are still held; not those that were there."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in there)

    def _forget(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.now += (size := storage.nbytes())
                weakref.finalize(storage, self._forget, size)
        self.peak = max(self.peak, self.now)
        return out


@torch.no_grad()
def peak_bytes(model: nn.Module, x: Tensor) -> int:
    """The most memory that a forward pass in evaluation mode needs beyond the weights and x, at one time.

    On a GPU what its allocator says; elsewhere the tensors between operators, what a kernel needs within it apart.
    """
    model.eval()
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        model(x)
        torch.cuda.synchronize(x.device)
        return torch.cuda.max_memory_allocated(x.device) - before
    with _Live([*model.parameters(), *model.buffers(), x]) as live:
        model(x)
    return live.peak


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
