"""Time a group of steps that are compared with one another, and describe the result as part of a row."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..timing import interleaved, paired_ratio
from .clock import Clock, Step
from .hardware import gpu_state
from .rows import FAILED, Rows

__all__ = ["drift", "measure_group", "reason", "time_group"]

MOST_ROUNDS = 300  # of a group, however fast its steps are


def time_group(
    steps: Mapping[str, Step], elapsed: Callable[[Step], float], references: Mapping[str, str], max_seconds: float
) -> dict[str, Any]:
    """Time the steps of a group in turns.

    Args:
        steps: the steps by name, the reference first. They were called before.
        elapsed: function that runs a step and returns its seconds.
        references: name of a ratio -> name of the step that it compares with; the drift is that of the first one.
        max_seconds: time limit.

    Returns:
        `results`: for each step `median_us`, and for each ratio the median of the paired ratios (2 is twice as fast)
        with `..._quartiles`; `rounds`; and `drift`.
    """
    seconds = interleaved(steps, MOST_ROUNDS, warmup=1, elapsed=elapsed, max_seconds=max_seconds)
    results: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        results[name] = {"median_us": 1e6 * statistics.median(times)}
        for ratio, reference in references.items():
            if reference in seconds:
                middle, low, high = paired_ratio(times, seconds[reference])
                results[name] |= {ratio: middle, f"{ratio}_quartiles": [low, high]}
    first = next(name for name in (*references.values(), *steps) if name in seconds)
    return {"results": results, "rounds": len(seconds[first]), "drift": drift(seconds[first])}


def drift(seconds: Sequence[float]) -> float | None:
    """Return the median of the second half of the rounds divided by that of the first half; None for one round."""
    half = len(seconds) // 2
    return statistics.median(seconds[-half:]) / statistics.median(seconds[:half]) if half else None


def measure_group(rows: Rows, settings: Mapping[str, Any], clock: Clock, measure: Callable[[], dict[str, Any]]) -> None:
    """Measure a row if it is missing, and add it with the state of the GPU; an error becomes the reason in the row.

    Raises:
        RuntimeError: the GPU cannot be used any more after the error.
    """
    if not rows.missing(settings):
        return
    try:
        before = gpu_state(rows.device)
        measured = measure()
        rows.add(settings, **measured, before=before, after=gpu_state(rows.device))
    except Exception as error:  # one group that fails must not cost the others
        rows.add(settings, not_measured=f"{FAILED}: {reason(error)}")
        clock.synchronize()  # raises the error again if the GPU is lost, so that the other rows stay unmeasured
        torch.compiler.reset()
    finally:
        clock.free_memory()


def reason(error: Exception) -> str:
    """Return the class and the first words of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
