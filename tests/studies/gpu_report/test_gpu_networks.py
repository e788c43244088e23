"""Whole networks as CUDA graphs: which are timed, and their table."""

import pytest

from diffvit_timm.studies.gpu_report import networks
from diffvit_timm.studies.gpu_report.report import report_text

PEAKS = {"plain ViT": 300.0, "Diff-ViT": 400.0}


class FakeClock:
    """Stands in for the clock of a GPU that captures every step but those that are named."""

    def __init__(self, free_mb: float | None, fails: tuple[str, ...] = ()) -> None:
        self.free, self.fails = free_mb, fails

    def free_mb(self) -> float | None:
        return self.free

    def graph(self, step):
        return f"graph of {step}", step not in self.fails


@pytest.mark.parametrize(("free_mb", "has_room"), [(None, False), (1300.0, False), (1400.0, True)])
def test_steps_become_graphs_only_on_a_gpu_with_twice_the_memory_that_they_need(free_mb, has_room):
    assert networks._have_room(FakeClock(free_mb), PEAKS) == has_room


def test_a_step_that_cannot_be_captured_is_left_out_of_the_graphs():
    steps = {name: name for name in PEAKS}
    graphs = networks._graphs(FakeClock(None, fails=("Diff-ViT",)), steps)
    assert graphs == {"plain ViT": "graph of plain ViT"}


def test_the_table_of_graphs_has_only_the_rows_that_were_captured():
    timed = {"median_us": 2000.0, "of_plain": 0.98, "of_timm": 1.4}
    modes = {"throughput": timed, "latency": timed, "graph": timed}
    rows = [_row(1, modes), _row(256, dict.fromkeys(("throughput", "latency"), timed))]
    text = report_text({"models-eager": rows})
    table = text.split("### CUDA graph")[1].split("###")[0]
    assert "| 1 | 2.00 | 0.98 / 1.40 | 1.01 |" in table
    assert "| 256 |" not in table
    assert "| 256 |" in text.split("### Latency")[1].split("###")[0]


def _row(batch: int, modes: dict) -> dict:
    settings = {"model": "diffvit_small_patch16", "img_size": 224, "step": "inference", "precision": "bf16"}
    return {
        "settings": {**settings, "batch": batch},
        "results": {"Diff-ViT": {**modes, "peak_mb": 10.0}},
        "drift": 1.01,
        "drifts": dict.fromkeys(modes, 1.01),
        "identity": {"gpu": "a GPU", "driver": None},
    }
