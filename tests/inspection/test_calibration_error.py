"""The expected calibration error against values worked out by hand."""

import numpy as np
import pytest

from diffvit_timm.inspection.calibration import calibration_error


def test_the_error_is_that_worked_out_by_hand():
    confidences = np.array([0.95, 0.94, 0.95, 0.96, 0.61, 0.62, 0.30])  # three of fifteen bins
    right = np.array([True, True, True, False, False, True, False])
    gaps = [4 * abs(3 / 4 - 0.95), 2 * abs(1 / 2 - 0.615), 1 * abs(0 - 0.30)]
    assert calibration_error(confidences, right) == pytest.approx(sum(gaps) / 7)


def test_confidence_that_is_the_accuracy_has_no_error():
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0, abs=1e-12)


def test_a_bin_includes_its_upper_end():
    confidences, right = np.array([0.25, 0.5]), np.array([False, True])
    assert calibration_error(confidences, right, bins=2) == pytest.approx(abs(0.75 - 1) / 2)  # one bin: (0, 0.5]
    assert calibration_error(confidences, right, bins=4) == pytest.approx((0.25 + 0.5) / 2)  # two bins


def test_the_ends_of_the_range_are_in_the_outer_bins():
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
    assert calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1.0


def test_confidences_of_float32_are_summed_in_float64():
    confidences = np.full(3_000_000, 0.1, dtype=np.float32)
    assert calibration_error(confidences, np.zeros(len(confidences), bool)) == pytest.approx(
        float(np.float32(0.1)), rel=1e-9
    )
