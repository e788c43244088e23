"""Interleaved timing, paired ratios, memory, and the name of the hardware."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffvit_timm.studies import timing
from diffvit_timm.studies.timing import (
    emulation_note,
    hardware_name,
    inference_step,
    interleaved,
    kept_bytes,
    paired_ratio,
    peak_bytes,
    training_step,
    weight_bytes,
)


def test_every_round_runs_each_step_once_in_a_new_order(monkeypatch):
    taken, now = [], [0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    steps = {"a": lambda: taken.append("a"), "b": lambda: (taken.append("b"), now.__setitem__(0, now[0] + 3))}
    seconds = interleaved(steps, repeats=3, warmup=2)
    rounds = list(zip(taken[::2], taken[1::2], strict=True))
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert len(rounds) == 5
    assert seconds == {"a": [0] * 3, "b": [3] * 3}


def test_the_ratio_is_the_median_over_pairs_and_not_the_ratio_of_medians():
    base, ours = [1.0, 10.0, 2.0], [2.0, 10.0, 4.0]  # the machine was busy in the second round
    assert paired_ratio(ours, base) == (0.5, 0.5, 0.75)
    assert paired_ratio([2.0], [1.0]) == (0.5, 0.5, 0.5)


def test_the_inference_step_has_no_gradients_and_the_training_step_frees_them():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    x = torch.randn(8, 4)
    out = inference_step(model, x)()
    assert not model.training
    assert not out.requires_grad
    training_step(model, x, torch.bfloat16)()
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "tensors"), [(nn.Linear(16, 16), 1), (nn.Sequential(nn.Linear(16, 16), nn.GELU()), 2)]
)
def test_kept_bytes_counts_each_activation_once_and_no_parameter(model, tensors):
    x = torch.randn(32, 16)
    assert kept_bytes(model, x) == tensors * x.nbytes


def test_the_peak_of_a_forward_pass_counts_the_tensors_that_are_alive_at_one_time():
    layers = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 500), nn.Linear(500, 10))
    x = torch.randn(50, 100)
    assert peak_bytes(layers, x) == 4 * 50 * (1000 + 1000)  # before and after the ReLU
    assert peak_bytes(nn.Identity(), x) == 0
    views = nn.Sequential(nn.Unflatten(1, (10, 10)), nn.Flatten())
    assert peak_bytes(views, x) == 0


def test_weight_bytes_count_parameters_and_buffers_in_their_precision():
    norm = nn.BatchNorm1d(10)
    assert weight_bytes(norm) == 4 * 40 + 8
    assert weight_bytes(norm.half()) == 2 * 40 + 8


def test_the_hardware_of_a_cpu_is_its_name_and_threads(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13\nmodel name\t: AMD EPYC 7B13\n")
    assert timing._processor_name(cpuinfo) == "AMD EPYC 7B13"
    monkeypatch.setattr(timing, "_processor_name", lambda: "AMD EPYC 7B13")
    assert hardware_name("cpu") == f"AMD EPYC 7B13, {torch.get_num_threads()} threads"


def test_a_processor_without_a_name_has_its_architecture(tmp_path, monkeypatch):
    monkeypatch.setattr(timing.sys, "platform", "linux")
    monkeypatch.setattr(timing.platform, "processor", lambda: "")
    monkeypatch.setattr(timing.platform, "machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nCPU architecture: 8\n")
    assert timing._processor_name(tmp_path / "cpuinfo") == "aarch64"
    assert timing._processor_name(tmp_path / "missing") == "aarch64"


def test_a_time_limit_leaves_four_rounds_and_the_clock_can_be_given():
    seconds = interleaved({"a": lambda: 2.0, "b": lambda: 3.0}, 50, elapsed=lambda step: step(), max_seconds=0.0)
    assert seconds == {"a": [2.0] * 4, "b": [3.0] * 4}


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16", ["fp16"]),
        ("flags\t\t: fpu avx2", ["bf16", "fp16"]),
        ("flags\t\t: fpu avx512_bf16 avx512_fp16", []),
        ("Features\t: fp asimdhp bf16", []),
        ("nothing that is known", []),
    ],
)
def test_a_note_names_the_processor_that_emulates_a_precision(flags, emulated, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: A Processor\n{flags}\n")
    notes = {precision: emulation_note(precision, "cpu", cpuinfo) for precision in ("fp32", "bf16", "fp16")}
    assert sorted(name for name, note in notes.items() if note) == emulated
    assert all("A Processor" in note for note in notes.values() if note)
    assert emulation_note("fp16", "cpu", tmp_path / "missing") is None
    assert emulation_note("fp16", "cuda", cpuinfo) is None
