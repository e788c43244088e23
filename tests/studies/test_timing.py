"""Timing by turns, ratios by pairs, and the memory of a training step."""

import time

import pytest
import torch
from torch import nn

from diffvit_timm.studies.timing import (
    inference_step,
    interleaved,
    kept_bytes,
    paired_ratio,
    peak_bytes,
    training_step,
    weight_bytes,
)


def test_every_round_takes_each_step_once_in_an_order_of_its_own():
    taken = []
    steps = {"a": lambda: taken.append("a"), "b": lambda: (taken.append("b"), time.sleep(0.01))}
    seconds = interleaved(steps, repeats=3, warmup=2)
    rounds = list(zip(taken[::2], taken[1::2], strict=True))
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert len(rounds) == 5
    assert len(seconds["a"]) == len(seconds["b"]) == 3
    assert all(b > 0.01 > a for a, b in zip(seconds["a"], seconds["b"], strict=True))


def test_the_ratio_is_the_median_of_the_pairs_and_not_of_the_times():
    base, ours = [1.0, 10.0, 2.0], [2.0, 10.0, 4.0]  # a machine that was busy once, for both
    assert paired_ratio(ours, base) == (0.5, 0.5, 0.75)
    assert paired_ratio([2.0], [1.0]) == (0.5, 0.5, 0.5)


def test_steps_are_an_evaluation_without_gradients_and_a_training_with_them_dropped():
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


def test_the_peak_of_a_forward_pass_is_what_lives_at_one_time():
    layers = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 500), nn.Linear(500, 10))
    x = torch.randn(50, 100)
    assert peak_bytes(layers, x) == 4 * 50 * (1000 + 1000)  # before and after the ReLU
    assert peak_bytes(nn.Identity(), x) == 0
    views = nn.Sequential(nn.Unflatten(1, (10, 10)), nn.Flatten())
    assert peak_bytes(views, x) == 0


def test_weights_are_parameters_and_buffers_in_their_precision():
    norm = nn.BatchNorm1d(10)
    assert weight_bytes(norm) == 4 * 40 + 8
    assert weight_bytes(norm.half()) == 2 * 40 + 8
