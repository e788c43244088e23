"""Checks of the operators and of a small network: opcheck, fp16 with a GradScaler, torch.compile and CUDA graphs."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor

from ..timing import explicit_maps
from .clock import Clock
from .inputs import DTYPES, make_heads
from .kernel import operator_calls
from .kernel_checks import FACTOR

__all__ = ["NETWORK_CHECKS"]

SMALL: dict[str, int] = dict(img_size=64, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=10)
KINDS: dict[str, dict[str, Any]] = {
    "version 1": {"head_norm": False},
    "version 1, head norm": {"head_norm": True},
    "version 2": {"attn": "diff_v2"},
}
BATCH = 16  # with 4 images the gradients of the plain ViT nearly overflow at this scale
FIRST_SCALE = 65_536.0  # of torch's GradScaler


def _small_network(kind: str, device: str) -> Any:
    torch.manual_seed(0)
    return timm.create_model("diffvit_tiny_patch16", **SMALL, **KINDS[kind]).to(device)


def _images(device: str) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(BATCH, 3, SMALL["img_size"], SMALL["img_size"], generator=generator, device=device)


def check_opcheck(device: str, precision: str) -> list[str]:
    """Return what torch.library.opcheck finds wrong with the operators."""
    heads = make_heads(1, 2, 17, 64, False, True, DTYPES[precision], device)
    try:
        for function, arguments in operator_calls(heads.leaves, (48, 16), 0.2):
            torch.library.opcheck(function, arguments)
    except Exception as error:  # opcheck raises errors of many classes
        return [f"opcheck, {precision}: {_one_line(error)}"]
    return []


def check_grad_scaler(device: str, precision: str) -> list[str]:
    """Return what goes wrong in one training step in fp16 with the first scale of torch's GradScaler.

    On a CPU the step is the same, under autocast to the given precision.
    """
    failures = []
    for kind in KINDS:
        network, images = _small_network(kind, device), _images(device)
        scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=FIRST_SCALE)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        labels = torch.arange(len(images), device=device) % SMALL["num_classes"]
        with torch.autocast(torch.device(device).type, DTYPES[precision]):
            loss = torch.nn.functional.cross_entropy(network(images).float(), labels)
        scaler.scale(loss).backward()
        for name, parameter in network.named_parameters():
            if parameter.grad is None or not parameter.grad.isfinite().all():
                failures.append(f"GradScaler, {precision}, {kind}: the gradient of {name} is missing or not finite")
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < FIRST_SCALE:
            failures.append(f"GradScaler, {precision}, {kind}: the step was skipped")
    return failures


def check_modes(device: str, precision: str, kind: str) -> list[str]:
    """Return which outputs of a network differ: eager, compiled without a graph break, replayed as a CUDA graph.

    The bound is twice the error of explicit maps in the same precision.
    """
    images, clock = _images(device), Clock(device)
    network = _small_network(kind, device).eval()
    double = copy.deepcopy(network).double()

    def forward(function: Callable[[Tensor], Tensor] = network) -> Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, DTYPES[precision]):
            return function(images)

    with torch.no_grad(), explicit_maps(double):
        exact = double(images.double())
    with explicit_maps(network):
        bound = FACTOR * _distance(forward(), exact)
    torch.compiler.reset()
    compiled = torch.compile(network, backend=clock.compile_backend, fullgraph=True)
    outputs = {"eager": forward(), "compiled": forward(compiled), **_replayed(forward, clock)}
    torch.compiler.reset()
    errors = {name: _distance(out, exact) for name, out in outputs.items()}
    return [
        f"{name}, {precision}, {kind}: the error of the outputs is {error:.2g}, above {bound:.2g}"
        for name, error in errors.items()
        if not error <= bound
    ]


def _replayed(forward: Callable[[], Tensor], clock: Clock) -> dict[str, Tensor]:
    """Return the output of a CUDA graph, which is captured from `forward`."""
    if not clock.is_cuda:
        return {}
    outputs: list[Tensor] = []

    def step() -> None:
        outputs[:] = [forward()]

    replay, captured = clock.graph(step)
    if not captured:
        raise RuntimeError("the network cannot be captured as a CUDA graph")
    with torch.inference_mode():  # in which the output was created
        outputs[0].zero_()  # so that only the replay can fill it
        replay()
    clock.synchronize()
    return {"CUDA graph": outputs[0]}


def _distance(actual: Tensor, exact: Tensor) -> float:
    return ((actual.double() - exact).norm() / exact.norm()).item()


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# Name -> (the only precision that is checked, function of the device and the precision).
NETWORK_CHECKS: dict[str, tuple[str | None, Callable[[str, str], list[str]]]] = {
    "GradScaler": ("fp16", check_grad_scaler),
    "opcheck": (None, check_opcheck),
    **{f"eager, compiled, CUDA graph: {kind}": (None, functools.partial(check_modes, kind=kind)) for kind in KINDS},
}
