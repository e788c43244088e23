"""Rows and their file, the state of the GPU, groups of steps, and the clock."""

import itertools
import json
import math
import subprocess
from types import SimpleNamespace

import pytest
import torch

from diffvit_timm.errors import InputError
from diffvit_timm.studies import timing
from diffvit_timm.studies.gpu_report import clock as clock_module
from diffvit_timm.studies.gpu_report import hardware
from diffvit_timm.studies.gpu_report.clock import Clock, float32_products
from diffvit_timm.studies.gpu_report.groups import drift, measure_group, time_group
from diffvit_timm.studies.gpu_report.rows import Rows, read_rows, require_same_identity


@pytest.fixture
def rows(tmp_path):
    return Rows(tmp_path, "attention", "cpu", minutes=5.0)


def test_a_row_is_written_at_once_and_replaces_the_one_with_its_settings(rows, tmp_path):
    rows.add({"N": 1}, not_measured="failed: once")
    rows.add({"N": 2}, results={})
    rows.add({"N": 1}, results={"ours": {"median_us": 3.0}})
    assert read_rows(tmp_path, "attention") == rows.rows
    assert [row["settings"]["N"] for row in rows.rows] == [2, 1]
    assert json.loads((tmp_path / "attention.json").read_text())["identity"] == hardware.identity("cpu")
    assert rows.chosen([{"N": 1}])[0]["results"]["ours"] == {"median_us": 3.0}


@pytest.mark.parametrize(
    ("measured", "is_missing"),
    [
        ({"results": {"ours": {"median_us": 1.0}}}, False),
        ({"results": {"cuDNN": {"unavailable": "RuntimeError: no kernel"}}}, False),
        ({"results": {"ours": {"unavailable": "time limit"}}}, True),
        ({"not_measured": "time limit"}, True),
        ({"passed": True, "failures": []}, False),
        ({"passed": False, "failures": ["wrong"]}, True),
    ],
)
def test_rows_without_a_result_are_measured_again(rows, measured, is_missing):
    rows.add({"N": 1}, **measured)
    assert rows.missing({"N": 1}) is is_missing


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "trainer.json").write_text("{")
    with pytest.raises(InputError, match=r"trainer\.json is damaged"):
        require_same_identity(tmp_path, "cpu")


def test_a_group_that_fails_leaves_its_reason(rows):
    def measure():
        raise RuntimeError("out of\nmemory")

    measure_group(rows, {"N": 1}, Clock("cpu"), measure)
    assert rows.rows[0]["not_measured"] == "failed: RuntimeError: out of memory"


def test_a_group_has_ratios_to_its_references_and_the_drift_of_the_first():
    seconds = {"plain": iter([1.0, 1.0, 1.0, 2.0, 2.0]), "ours": iter([2.0, 2.0, 2.0, 4.0, 4.0])}
    steps = {name: lambda name=name: next(seconds[name]) for name in seconds}
    measured = time_group(steps, lambda step: step(), {"of_plain": "plain", "of_timm": "timm"}, max_seconds=0.0)
    assert measured["rounds"] == 4  # after one round of warm-up
    assert measured["drift"] == 2.0
    assert measured["results"]["ours"] == {"median_us": 3e6, "of_plain": 0.5, "of_plain_quartiles": [0.5, 0.5]}
    assert drift([1.0]) is None


def test_the_state_of_a_gpu_is_what_nvidia_smi_says(monkeypatch):
    commands = []

    def answer(command, **options):
        commands.append(command)
        return SimpleNamespace(returncode=0, stdout="1980, 2619, 34, [N/A]\n")

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="12-ab"))
    monkeypatch.setattr(hardware, "_last_state", {})
    monkeypatch.setattr(hardware, "FRESH", math.inf)
    state = {"sm_mhz": 1980.0, "memory_mhz": 2619.0, "temperature_c": 34.0, "power_w": None}
    assert hardware.gpu_state("cuda") == hardware.gpu_state("cuda") == state
    fields = "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw"
    assert commands == [["nvidia-smi", "--id=GPU-12-ab", fields, "--format=csv,noheader,nounits"]]
    assert set(hardware.gpu_state("cpu").values()) == {None}


def test_without_nvidia_smi_nothing_is_known_and_it_is_asked_once(monkeypatch):
    asked = []

    def missing(command, **options):
        asked.append(command)
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="12-ab"))
    monkeypatch.setattr(hardware, "_last_state", {})
    assert set(hardware.gpu_state("cuda").values()) == set(hardware.gpu_state("cuda").values()) == {None}
    assert len(asked) == 1


def test_the_clock_of_a_cpu_times_the_step_as_it_is(monkeypatch):
    ticks = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(clock_module, "time", ticks)
    monkeypatch.setattr(timing, "time", ticks)
    calls, clock = [], Clock("cpu")
    step, captured = clock.graph(lambda: calls.append(1))
    assert not captured
    assert clock.queued(step, 3) == 1 / 3
    assert clock.device_time(step) == 1
    assert len(calls) == 5
    assert clock.peak_mb(step) is None


def test_the_precision_of_float32_products_is_restored():
    before = torch.get_float32_matmul_precision()
    with float32_products("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    with float32_products("fp32"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


def test_a_row_with_a_shorter_time_limit_is_measured_again(tmp_path):
    Rows(tmp_path, "attention", "cpu", minutes=1, row_seconds=0.5).add({"tokens": 17}, results={})
    assert not Rows(tmp_path, "attention", "cpu", minutes=1, row_seconds=0.2).missing({"tokens": 17})
    assert Rows(tmp_path, "attention", "cpu", minutes=1, row_seconds=2.0).missing({"tokens": 17})
