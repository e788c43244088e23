"""Speed of differential attention beside plain attention: networks of one shape with random weights, timed in turns.

The networks are the plain ViT with timm's own blocks, versions 1 and 2 of differential attention, and timm's
differential attention.
"""

from collections.abc import Mapping
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from .conversions import with_timm_attention
from .timing import (
    PRECISIONS,
    explicit_maps,
    inference_step,
    interleaved,
    kept_bytes,
    paired_ratio,
    training_step,
)

__all__ = [
    "PLAIN",
    "TIMM",
    "Step",
    "make_networks",
    "reference_error",
    "relative_kept_bytes",
    "relative_speeds",
    "time_step",
]

PLAIN, TIMM = "plain ViT", "timm, attn_layer='diff'"

Step = Literal["inference", "training"]


def make_networks(model: str, img_size: int, device: str = "cpu") -> dict[str, Any]:
    """Create the networks to compare, all of the same width, depth and patch size.

    Args:
        model: a registered variant, diffvit_*.
        img_size: height and width of the images in pixels.
        device: device to move the networks to.

    Returns:
        The networks by the names under which they are shown.
    """
    settings = dict(img_size=img_size, num_classes=1000)
    plain = timm.create_model(model, attn="plain", **settings)
    networks = {
        PLAIN: plain,
        "Diff-ViT": timm.create_model(model, head_norm=False, **settings),
        "Diff-ViT, head norm": timm.create_model(model, head_norm=True, **settings),
        "Diff-ViT, version 2": timm.create_model(model, attn="diff_v2", **settings),
        TIMM: with_timm_attention(plain),
    }
    return {name: network.to(device) for name, network in networks.items()}


def relative_kept_bytes(networks: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Return the memory that a forward pass keeps for its backward pass, relative to the plain ViT.

    Args:
        networks: networks from `make_networks`.
        x: images, (B, C, H, W).
    """
    kept = {name: kept_bytes(network, x) for name, network in networks.items()}
    return {name: size / kept[PLAIN] for name, size in kept.items()}


def reference_error(network: nn.Module, x: Tensor) -> float:
    """Return the difference of the fp32 logits of a network to those of explicit attention maps.

    Args:
        network: a network with differential attention of this package.
        x: images, (B, C, H, W).

    Returns:
        Norm of the difference divided by the norm of the logits.
    """
    fast = inference_step(network, x)()
    with explicit_maps(network):
        exact = inference_step(network, x)()
    return ((fast - exact).norm() / exact.norm()).item()


def time_step(
    networks: Mapping[str, nn.Module], x: Tensor, step: Step, precision: str, repeats: int, compiled: bool = False
) -> dict[str, list[float]]:
    """Time one kind of step of all networks in turns.

    Args:
        networks: networks from `make_networks`.
        x: images, (B, C, H, W).
        step: inference, or training (a forward and a backward pass).
        precision: key of PRECISIONS to autocast to; fp32: no autocast.
        repeats: number of rounds; in each round every network takes one step.
        compiled: whether to compile the networks by torch.compile.

    Returns:
        Seconds of each network, one per round.
    """
    timed = _compiled(networks) if compiled else networks
    make_step = training_step if step == "training" else inference_step
    steps = {name: make_step(network, x, PRECISIONS[precision]) for name, network in timed.items()}
    return interleaved(steps, repeats, warmup=3 if compiled else 1, device=x.device)


def _compiled(networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Compile the networks anew: torch compiles at most eight versions of the code of a class, which they share."""
    torch.compiler.reset()
    return {name: torch.compile(network, fullgraph=True) for name, network in networks.items()}


def relative_speeds(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Compare the speed of each network with the plain ViT and with timm's differential attention.

    Args:
        seconds: result of `time_step`.

    Returns:
        For each network `speed_of_plain`, the median of the paired ratios to the plain ViT, where 2 means twice as
        fast; their lower and upper `quartiles`; and `speed_of_timm`, the median to timm's differential attention.
    """
    rows = {}
    for name, times in seconds.items():
        speed, low, high = paired_ratio(times, seconds[PLAIN])
        rows[name] = {
            "speed_of_plain": round(speed, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "speed_of_timm": round(paired_ratio(times, seconds[TIMM])[0], 3),
        }
    return rows
