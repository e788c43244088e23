"""The stages `models-eager` and `models-compiled`: whole networks with differential attention beside the plain ViT."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..attention_speed import PLAIN, TIMM, make_networks
from ..timing import inference_step, training_step
from .clock import Clock, Step, float32_products
from .groups import measure_group, reason, time_group
from .inputs import DTYPES
from .rows import TIME_LIMIT, Rows
from .settings import Settings

__all__ = ["run_compiled", "run_eager"]

STEPS: dict[str, Callable[..., Step]] = {"inference": inference_step, "training": training_step}
# Steps with one synchronisation at their end, for the throughput: of networks that are fast, and of slow ones.
QUEUED, QUEUED_IF_SLOW, SLOW_US = 5, 2, 50_000.0
REFERENCES = {"of_plain": PLAIN, "of_timm": TIMM}


class _Networks:
    """The networks of each variant, created when they are needed and kept, because the rows go back and forth."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.made: dict[str, dict[str, nn.Module]] = {}

    def of(self, model: str) -> dict[str, nn.Module]:
        if model not in self.made:
            torch.manual_seed(0)
            self.made[model] = make_networks(model, self.settings.img_size, self.settings.device)
        return self.made[model]

    def images(self, model: str, batch: int) -> Tensor:
        channels: Any = self.of(model)[PLAIN].in_chans
        size = self.settings.img_size
        return torch.randn(batch, channels, size, size, device=self.settings.device)


def run_eager(settings: Settings, rows: Rows) -> list[dict[str, Any]]:
    """Time the networks as they are, for all precisions, batch sizes and variants."""
    listed = [
        {"precision": precision, "batch": batch, "model": model, "step": step, "img_size": settings.img_size}
        for precision, batch, model, step in itertools.product(
            settings.precisions, settings.batch_sizes, settings.models, STEPS
        )
    ]
    return _run(settings, rows, listed, is_compiled=False)


def run_compiled(settings: Settings, rows: Rows) -> list[dict[str, Any]]:
    """Time the networks compiled by torch.compile: the first variant, batch size and precision only."""
    first = {"precision": settings.precisions[0], "batch": settings.batch_sizes[0], "model": settings.models[0]}
    listed = [{**first, "step": step, "img_size": settings.img_size} for step in STEPS]
    return _run(settings, rows, listed, is_compiled=True)


def _run(settings: Settings, rows: Rows, listed: list[dict[str, Any]], is_compiled: bool) -> list[dict[str, Any]]:
    clock, networks = Clock(settings.device), _Networks(settings)
    for row_settings in listed:

        def measure(group: dict[str, Any] = row_settings) -> dict[str, Any]:
            with float32_products(group["precision"]):
                images = networks.images(group["model"], group["batch"])
                return _measure(networks.of(group["model"]), images, group, clock, settings, rows, is_compiled)

        measure_group(rows, row_settings, clock, measure)
    torch.compiler.reset()
    return rows.chosen(listed)


def _measure(
    networks: dict[str, nn.Module], images: Tensor, group: dict[str, Any], clock: Clock, settings: Settings, rows: Rows,
    is_compiled: bool
) -> dict[str, Any]:  # fmt: skip
    """Time one kind of step of all networks: latency, throughput, and a CUDA graph of the step."""
    torch.compiler.reset()
    steps: dict[str, Step] = {}
    unavailable: dict[str, dict[str, Any]] = {}
    peaks: dict[str, float | None] = {}
    # Plain and timm's first: if the time ends while networks compile, the others still have their references.
    for name in sorted(networks, key=lambda name: name not in (PLAIN, "Diff-ViT", TIMM)):
        if is_compiled and steps and not rows.seconds_left:
            unavailable[name] = {"unavailable": TIME_LIMIT}
            continue
        network: Any = networks[name]
        if is_compiled:
            network = torch.compile(network, backend=clock.compile_backend, fullgraph=True, dynamic=False)
        step = STEPS[group["step"]](network, images, DTYPES[group["precision"]])
        try:
            step()
            step()
            peaks[name] = clock.peak_mb(step)
            steps[name] = step
        except Exception as error:  # compilers raise errors of many classes
            clock.synchronize()
            unavailable[name] = {"unavailable": reason(error)}
    if not steps:
        raise RuntimeError(f"no network runs: {unavailable}")
    captures = not is_compiled and _have_room(clock, peaks)
    limit = min(settings.row_seconds, rows.seconds_left) / (3 if captures else 2)
    latency = time_group(steps, clock.wall, REFERENCES, limit)
    slowest = max(result["median_us"] for result in latency["results"].values())
    count = QUEUED_IF_SLOW if slowest > SLOW_US else QUEUED
    groups = {
        "latency": latency,
        "throughput": time_group(steps, lambda step: clock.queued(step, count), REFERENCES, limit),
    }
    graphs = _graphs(clock, steps) if captures else {}  # after the others, because a capture may fail
    if graphs:
        groups["graph"] = time_group(graphs, clock.device_time, REFERENCES, limit)
    results: dict[str, dict[str, Any]] = {}
    for name in steps:
        results[name] = {mode: group["results"][name] for mode, group in groups.items() if name in group["results"]}
        results[name]["throughput"]["images_per_second"] = len(images) / results[name]["throughput"]["median_us"] * 1e6
        results[name]["peak_mb"] = peaks[name]
    return {
        "results": {**results, **unavailable},
        "rounds": {mode: group["rounds"] for mode, group in groups.items()},
        "drift": groups["throughput"]["drift"],
        "drifts": {mode: group["drift"] for mode, group in groups.items()},
    }


def _have_room(clock: Clock, peaks: Mapping[str, float | None]) -> bool:
    """Return whether the CUDA graphs of all steps need at most half of the GPU's free memory; False on a CPU.

    A graph keeps the memory that its step allocates.
    """
    free = clock.free_mb()
    return free is not None and sum(peak or 0.0 for peak in peaks.values()) <= free / 2


def _graphs(clock: Clock, steps: Mapping[str, Step]) -> dict[str, Step]:
    """Return the steps as CUDA graphs, in which Python takes no time, without those that cannot be captured."""
    graphs = {name: clock.graph(step) for name, step in steps.items()}
    return {name: graph for name, (graph, captured) in graphs.items() if captured}
