"""Accuracy against values worked out by hand."""

import math

import numpy as np
import pytest

from diffvit_timm.inspection.accuracy import Accuracy


def wilson(right, n, z=1.959963984540054):
    centre = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return centre - half, centre + half


def accuracy_of(predictions, labels, losses=None):
    labels = np.array(labels)
    return Accuracy.of(np.array(predictions), labels, np.zeros(len(labels)) if losses is None else np.array(losses))


def test_the_figures_are_those_worked_out_by_hand():
    result = accuracy_of([0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 1, 2], [0.5, 0.25, 1.0, 0.25, 2.0, 2.0])
    assert result.accuracy == 3 / 6
    assert result.mean_per_class == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert result.images == 6
    assert result.loss == pytest.approx(1.0)
    assert result.interval == pytest.approx(wilson(3, 6))
    assert result.confusions == [(0, 1, 1), (1, 2, 1), (2, 0, 1)]


def test_the_calibration_error_is_that_of_the_confidences_and_unknown_without_them():
    predictions, labels, losses = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.zeros(4)
    found = Accuracy.of(predictions, labels, losses, np.array([0.9, 0.9, 0.6, 0.6]))
    assert found.calibration_error == pytest.approx((abs(0.5 - 0.9) + abs(1.0 - 0.6)) / 2)
    assert accuracy_of([0, 1], [0, 0]).calibration_error is None


def test_the_most_frequent_confusions_come_first_and_five_are_named():
    labels = [0] * 9 + [1] * 3 + [2, 3, 4, 5]
    predictions = [1] * 2 + [2] * 3 + [0] * 4 + [0] * 3 + [0, 0, 0, 0]
    assert accuracy_of(predictions, labels).confusions == [(0, 2, 3), (1, 0, 3), (0, 1, 2), (2, 0, 1), (3, 0, 1)]


@pytest.mark.parametrize(("right", "n"), [(0, 10), (1, 10), (10, 10), (1400, 1561), (1, 1)])
def test_the_interval_is_wilsons(right, n):
    result = accuracy_of([1] * right + [0] * (n - right), [1] * n)
    assert result.accuracy == right / n
    assert result.interval == pytest.approx(wilson(right, n), abs=1e-12)
    assert 0 <= result.interval[0] <= result.accuracy <= result.interval[1] <= 1


def test_a_frequent_class_does_not_hide_a_rare_one():
    result = accuracy_of([0] * 100, [0] * 99 + [1])
    assert result.accuracy == 0.99
    assert result.mean_per_class == 0.5


def test_classes_without_images_do_not_count():
    assert accuracy_of([0, 7, 3], [0, 7, 7]).mean_per_class == pytest.approx(0.75)


def test_the_mean_loss_of_many_images_is_not_rounded_away():
    losses = np.full(3_000_001, 0.1, dtype=np.float32)
    losses[0] = 1000.0
    result = Accuracy.of(np.zeros(len(losses), int), np.zeros(len(losses), int), losses)
    assert result.loss == pytest.approx((float(np.float32(0.1)) * 3_000_000 + 1000) / 3_000_001, rel=1e-9)


def test_the_figures_are_plain_numbers_that_json_takes():
    result = accuracy_of([0, 1], [0, 0])
    assert type(result.accuracy) is type(result.mean_per_class) is type(result.loss) is float
    assert [type(bound) for bound in result.interval] == [float, float]
    assert type(result.images) is int
