"""Sentences about the rows: where our kernel is the fastest path, and whether the targets were reached."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..attention_speed import TIMM
from .candidates import FLASH, OURS, STACKED

__all__ = ["kernel_verdicts", "target_sentences"]

Row = Mapping[str, Any]

FLASH_TARGETS = {"H100": 0.55, "A100": 0.6}  # speed of attention alone, relative to plain flash attention
# Speed of whole networks: ratio in the rows -> target, and what it is relative to.
NETWORK_TARGETS = {"of_plain": (0.95, "the plain ViT"), "of_timm": (1.3, TIMM)}
TARGET_MODELS = ("diffvit_small_patch16", "diffvit_base_patch16")
TARGET_NETWORKS = ("Diff-ViT", "Diff-ViT, version 2")


def kernel_verdicts(rows: Sequence[Row]) -> list[str]:
    """Say for which shapes our kernel or one stacked call was faster.

    Args:
        rows: rows of the stage attention.

    Returns:
        One sentence per kind of step, and one about what `has_kernel` should say.
    """
    speeds: dict[str, dict[str, float]] = {}
    for row in rows:
        ours, stacked = (_result(row, name).get("median_us") for name in (OURS, STACKED))
        if ours is not None and stacked is not None:
            speeds.setdefault(row["settings"]["step"], {})[shape_text(row)] = stacked / ours
    if not speeds:
        return ["Our kernel and stacked SDPA were not compared for any shape."]
    sentences = [
        f"{step}: our kernel was {_range(shapes.values())} as fast as stacked SDPA ({_shapes(len(shapes))})."
        for step, shapes in speeds.items()
    ]
    slower = [shape for shapes in speeds.values() for shape, speed in shapes.items() if speed < 1]
    if slower:
        return [*sentences, f"`has_kernel` should say no for: {'; '.join(slower)}."]
    return [*sentences, "Our kernel was faster for every measured shape."]


def _range(speeds: Iterable[float]) -> str:
    speeds = list(speeds)
    low, high = f"{min(speeds):.2f}x", f"{max(speeds):.2f}x"
    return low if low == high else f"{low} to {high}"


def _shapes(count: int) -> str:
    return f"{count} shape" + ("" if count == 1 else "s")


def _result(row: Row, name: str) -> Mapping[str, Any]:
    """Return the result of a candidate or network; an empty one if it was not measured."""
    return row.get("results", {}).get(name, {})


def shape_text(row: Row) -> str:
    """Write the settings of a row of the stage attention in words."""
    s = row["settings"]
    return f"{s['attention']}, {s['heads']} heads, N = {s['tokens']}, batch {s['batch']}, {s['precision']}, {s['step']}"


def target_sentences(gpu: str, attention: Sequence[Row], eager: Sequence[Row]) -> list[str]:
    """Say which targets were reached.

    Args:
        gpu: name of the GPU.
        attention: rows of the stage attention.
        eager: rows of the stage models-eager.
    """
    return [*_flash_sentences(gpu, attention), *_network_sentences(eager)]


def _flash_sentences(gpu: str, attention: Sequence[Row]) -> list[str]:
    target = next((value for name, value in FLASH_TARGETS.items() if name in gpu), None)
    if target is None:
        return [f"There is no target for attention alone on {gpu}; the targets are for {' and '.join(FLASH_TARGETS)}."]
    ratios = {
        shape_text(row): ratio
        for row in attention
        if row.get("reference") == FLASH and (ratio := _result(row, OURS).get("of_reference")) is not None
    }
    if not ratios:
        return ["Attention alone was not compared with flash attention."]
    short = {shape: ratio for shape, ratio in ratios.items() if ratio < target}
    lowest = min(ratios, key=lambda shape: ratios[shape])
    outcome = "reached" if not short else "not reached"
    sentences = [
        f"The target of {target}x of flash for attention alone was {outcome}: {len(ratios) - len(short)} of "
        f"{len(ratios)} measured shapes reached it, and the lowest was {ratios[lowest]:.2f}x ({lowest})."
    ]
    return [*sentences, *(f"{shape}: {ratio:.2f}x is below the target." for shape, ratio in short.items())]


def _network_sentences(eager: Sequence[Row]) -> list[str]:
    """Return a sentence per network, kind of step and target, which names the rows below the target."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in eager:
        settings = row["settings"]
        if settings["precision"] != "bf16" or settings["model"] not in TARGET_MODELS:
            continue
        where = f"{settings['model']}, batch {settings['batch']}"
        for name in TARGET_NETWORKS:
            for ratio, speed in _result(row, name).get("throughput", {}).items():
                if ratio in NETWORK_TARGETS:
                    found.setdefault((name, settings["step"], ratio), {})[where] = speed
    sentences = []
    for (name, step, ratio), speeds in found.items():
        target, other = NETWORK_TARGETS[ratio]
        below = [f"{where} ({speed:.2f}x)" for where, speed in speeds.items() if speed < target]
        reached = f"{len(speeds) - len(below)} of {len(speeds)} measured rows reached it"
        outcome = f"not reached: {reached}, but not {', '.join(below)}" if below else f"reached: {reached}"
        sentences.append(f"{name}, {step}, bf16: the target of {target}x the speed of {other} was {outcome}.")
    return sentences or ["No target network was measured in bf16."]
