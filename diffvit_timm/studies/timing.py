"""Time and memory of models. Timings are interleaved and compared in pairs, so that other load cancels out."""

import contextlib
import math
import platform
import random
import re
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "PRECISIONS",
    "emulation_note",
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

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LEAST_ROUNDS = 4  # rounds that a time limit leaves, two in each half

NameT = TypeVar("NameT")


def hardware_name(device: str | torch.device) -> str:
    """Return the name of the hardware for a caption: the GPU, or the processor and the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()}, {torch.get_num_threads()} threads"


def _processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model name of the processor, or its architecture if the system does not know the name."""
    if cpuinfo.is_file():  # Linux
        name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if name:
            return name[1].strip()
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine()


# Flags of /proc/cpuinfo on x86 and ARM of which one says that a processor has products in a precision.
PRODUCT_FLAGS = {
    "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"},
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
}


def emulation_note(precision: str, device: str | torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Say that the processor has no products in a precision; None if it has them, or for another device.

    Args:
        precision: key of PRECISIONS.
        device: device of the products.
        cpuinfo: file in which Linux describes the processor. Where there is none, nothing is known.
    """
    if torch.device(device).type != "cpu" or precision not in PRODUCT_FLAGS or not cpuinfo.is_file():
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    if flags is None or PRODUCT_FLAGS[precision] & set(flags[1].split()):
        return None
    return (
        f"{precision} on {_processor_name(cpuinfo)}: the processor emulates products in {precision}, so these times "
        "say nothing about other processors"
    )


def interleaved(
    steps: Mapping[NameT, Callable[[], object]],
    repeats: int,
    warmup: int = 2,
    device: str | torch.device = "cpu",
    elapsed: Callable[[Callable[[], object]], float] | None = None,
    max_seconds: float = math.inf,
) -> dict[NameT, list[float]]:
    """Time several steps in turns.

    A round runs every step once, so that other load on the machine affects all steps. The order is shuffled in every
    round, because a step leaves traces in the caches and the heap that affect the next one.

    Args:
        steps: functions to time, by name.
        repeats: number of timed rounds.
        warmup: number of rounds before them.
        device: device of the steps. CUDA is timed with its own events; other devices are synchronised after each step.
        elapsed: function that runs a step and returns its seconds; None: that of the device.
        max_seconds: time limit. No round starts after it, but LEAST_ROUNDS rounds are always timed.

    Returns:
        Seconds of each step, one per timed round.
    """
    seconds: dict[NameT, list[float]] = {name: [] for name in steps}
    device = torch.device(device)
    clocks: dict[str, Callable[[Callable[[], object]], float]] = {
        "cpu": _elapsed,
        "cuda": partial(_elapsed_on_cuda, device),
    }
    elapsed = elapsed or clocks.get(device.type, _elapsed_elsewhere)
    order, names = random.Random(0), list(steps)
    start = time.perf_counter()
    for repeat in range(-warmup, repeats):
        if repeat >= LEAST_ROUNDS and time.perf_counter() - start >= max_seconds:
            break
        order.shuffle(names)
        for name in names:
            duration = elapsed(steps[name])
            if repeat >= 0:
                seconds[name].append(duration)
    return seconds


def _elapsed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _elapsed_on_cuda(device: torch.device, step: Callable[[], object]) -> float:
    """Time a step with CUDA events, which include the waiting if the CPU launches kernels too slowly."""
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
    """Return the speed relative to `base`, paired by round: median, lower quartile, upper quartile.

    Args:
        seconds, base: one number per round, from the same call of `interleaved`.
    """
    ratios = [b / s for s, b in zip(seconds, base, strict=True)]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def inference_step(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """Return a function that runs a forward pass in evaluation mode, without gradients, with autocast to `dtype`."""

    def step() -> Tensor:
        model.eval()
        with torch.inference_mode(), _autocast(x.device, dtype):
            return model(x)

    return step


def training_step(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Return a function that runs a forward and a backward pass with autocast to `dtype`.

    It leaves out the optimizer's step, which is the same for all kinds of attention.
    """

    def step() -> None:
        model.train()
        with _autocast(x.device, dtype):
            loss = model(x).float().logsumexp(dim=-1).mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that a forward pass on x keeps in memory for its backward pass, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # the reference prevents that the address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(x)
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in parameters)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that operators created and that are still alive.

    Args:
        existing: tensors that do not count.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in existing)  # views share a storage

    def _subtract(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.now += (size := storage.nbytes())
                weakref.finalize(storage, self._subtract, size)
        self.peak = max(self.peak, self.now)
        return out


@torch.no_grad()
def peak_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the peak memory in bytes of a forward pass in evaluation mode, without the weights and x.

    On a GPU this is the peak of the CUDA allocator. On other devices it counts the tensors that operators return, but
    not the memory that a kernel allocates internally.
    """
    model.eval()
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        model(x)
        torch.cuda.synchronize(x.device)
        return torch.cuda.max_memory_allocated(x.device) - before
    with _LiveBytes([*model.parameters(), *model.buffers(), x]) as live:
        model(x)
    return live.peak


@contextlib.contextmanager
def explicit_maps(model: nn.Module) -> Iterator[None]:
    """Compute explicit attention maps instead of fused kernels in all layers of `model` within this context."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    before = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        yield
    finally:
        for layer, fused in zip(layers, before, strict=True):
            layer.fused_attn = fused
