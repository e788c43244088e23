"""The stage `attention`: attention alone, without projections, in the shapes of ViTs."""

import itertools
from collections.abc import Iterator
from typing import Any

import timm
import torch

from ...layers.kernels.layout import BranchDims
from .candidates import PLAIN, candidates, inference_call, training_call
from .clock import Clock, Step
from .groups import measure_group, reason, time_group
from .inputs import DTYPES, make_heads, widths_text
from .rows import Rows
from .settings import Settings

__all__ = ["run_attention"]

CALLS = {"forward": inference_call, "forward and backward": training_call}
MANY_TOKENS = 1000  # from here on a batch has a quarter of the images
OVERHEAD_CALLS = 50


def run_attention(settings: Settings, rows: Rows) -> list[dict[str, Any]]:
    """Time all shapes whose rows are missing; returns the rows of these settings."""
    clock, listed = Clock(settings.device), []
    for precision in settings.attention_precisions:
        for heads, width, tokens, batch in shapes(settings):
            for branch_dims, step in itertools.product(branch_widths(width), CALLS):
                row_settings = {
                    "precision": precision, "attention": widths_text(branch_dims, width), "step": step, "heads": heads,
                    "tokens": tokens, "batch": batch,
                }  # fmt: skip
                listed.append(row_settings)

                def measure(
                    precision=precision, branch_dims=branch_dims, shape=(batch, heads, tokens, width), step=step
                ):
                    limit = min(settings.row_seconds, rows.seconds_left)
                    return _measure(clock, shape, branch_dims, step, precision, limit)

                measure_group(rows, row_settings, clock, measure)
    return rows.chosen(listed)


def shapes(settings: Settings) -> Iterator[tuple[int, int, int, int]]:
    """Yield heads, width of a head, tokens and batch size of each shape, the most important one first.

    The first batch size is measured for all numbers of tokens, the others for the first number only.
    """
    heads_and_widths = []
    for model in settings.models:
        with torch.device("meta"):
            layer: Any = timm.create_model(model).blocks[0].attn
        heads_and_widths.append((layer.num_heads, layer.head_dim))
    batch, *other_batches = settings.batch_sizes
    first, *more = settings.tokens
    sizes = [(first, batch), *((tokens, batch if tokens < MANY_TOKENS else max(1, batch // 4)) for tokens in more)]
    for tokens, images in [*sizes, *((first, images) for images in other_batches)]:
        for heads, width in dict.fromkeys(heads_and_widths):
            yield heads, width, tokens, images


def branch_widths(width: int) -> list[BranchDims]:
    """Return the branch widths of converted networks, of version 2 and of the paper for a width of a head."""
    quarter, half = width // 4, width // 2
    return [(width - quarter, quarter), None, (width - half, half)]


def _measure(
    clock: Clock, shape: tuple[int, int, int, int], branch_dims: BranchDims, step: str, precision: str, seconds: float
) -> dict[str, Any]:
    """Time all candidates for one shape."""
    batch, _, _, width = shape
    is_v2 = branch_dims is None
    inputs = make_heads(*shape, is_v2, per_token=is_v2, dtype=DTYPES[precision], device=str(clock.device))
    scale = width**-0.5 if is_v2 else (width / 2) ** -0.5
    eager: dict[str, Step] = {}
    ready: dict[str, tuple[Step, bool]] = {}
    unavailable: dict[str, dict[str, Any]] = {}
    for name, candidate in candidates(inputs, branch_dims, scale).items():
        call = CALLS[step](candidate, inputs.grad)
        try:
            call()
            ready[name] = clock.graph(call)
            eager[name] = call
        except Exception as error:  # Triton raises errors of its own classes
            clock.synchronize()
            unavailable[name] = {"unavailable": reason(error)}
    if not ready:
        raise RuntimeError(f"no candidate runs: {unavailable}")
    reference = next((name for name in PLAIN if name in ready), next(iter(ready)))
    steps = {name: timed for name, (timed, _) in ready.items()}
    measured = time_group(steps, clock.device_time, {"of_reference": reference}, seconds)
    for name, (_, captured) in ready.items():
        result = measured["results"][name]
        result["captured"] = captured
        if batch == 1:  # the time of Python, which a CUDA graph hides
            result["overhead_us"] = 1e6 * clock.queued(eager[name], OVERHEAD_CALLS if clock.is_cuda else 2)
    measured["results"] |= unavailable
    return {**measured, "reference": reference}
