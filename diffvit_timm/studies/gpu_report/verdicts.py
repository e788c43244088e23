"""What the rows say in sentences: where our kernel is the fastest path, and whether the targets were reached."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..attention_speed import TIMM
from .candidates import OURS, STACKED

__all__ = ["kernel_verdicts", "target_sentences"]

Row = Mapping[str, Any]

FLASH = "plain flash"
FLASH_TARGETS = {"H100": 0.55, "A100": 0.6}  # speed of attention alone, relative to plain flash attention
PLAIN_TARGET, TIMM_TARGET = 0.95, 1.3  # speed of whole networks, relative to the plain ViT and to timm's layer
TARGET_MODELS = ("diffvit_small_patch16", "diffvit_base_patch16")
TARGET_NETWORKS = ("Diff-ViT", "Diff-ViT, version 2")


def kernel_verdicts(rows: Sequence[Row]) -> list[str]:
    """Say for which shapes our kernel or one stacked call was faster.

    Args:
        rows: rows of the stage attention.

    Returns:
        One sentence per shape, and one about what `has_kernel` should say.
    """
    sentences, slower = [], []
    for row in rows:
        ours, stacked = (_result(row, name).get("median_us") for name in (OURS, STACKED))
        if ours is None or stacked is None:
            continue
        shape = shape_text(row)
        if ours <= stacked:
            sentences.append(f"{shape}: our kernel was {stacked / ours:.2f}x as fast as stacked SDPA.")
        else:
            sentences.append(f"{shape}: stacked SDPA was {ours / stacked:.2f}x as fast as our kernel.")
            slower.append(shape)
    if not sentences:
        return ["Our kernel and stacked SDPA were not compared for any shape."]
    if slower:
        return [*sentences, f"`has_kernel` should say no for: {'; '.join(slower)}."]
    return [*sentences, "Our kernel was faster for every measured shape."]


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
    sentences = []
    for row in eager:
        settings = row["settings"]
        if settings["precision"] != "bf16" or settings["model"] not in TARGET_MODELS:
            continue
        where = f"{settings['model']}, {settings['step']}, bf16, batch {settings['batch']}"
        if "not_measured" in row:
            sentences.append(f"{where}: this was not measured ({row['not_measured']}).")
            continue
        for name in TARGET_NETWORKS:
            throughput = _result(row, name).get("throughput", {})
            for ratio, other, target in (("of_plain", "the plain ViT", PLAIN_TARGET), ("of_timm", TIMM, TIMM_TARGET)):
                if ratio in throughput:
                    outcome = "reached" if throughput[ratio] >= target else "not reached"
                    speed = f"{throughput[ratio]:.2f}x the speed of {other}"
                    sentences.append(f"{where}: {name} had {speed}, so the target of {target}x was {outcome}.")
    return sentences or ["No target network was measured in bf16."]
