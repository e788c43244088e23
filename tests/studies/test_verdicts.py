"""Paired tests against scipy and values worked out by hand, and the verdicts that follow."""

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from diffvit_timm.studies.results import Run, mean_interval, paired_differences
from diffvit_timm.studies.verdicts import compare_endpoints, difference_p, equivalence_p, holm

DIFFERENCES = [0.1, -0.1, 0.2, 0.0]  # mean 0.05, standard error 0.0645497


def test_the_p_value_of_a_difference_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.8, 0.02, 9), rng.normal(0.79, 0.02, 9)
    assert difference_p(first - second) == pytest.approx(ttest_rel(first, second).pvalue)
    assert difference_p(DIFFERENCES) == pytest.approx(2 * t.sf(0.05 / 0.0645497, 3), rel=1e-5)


def test_the_p_value_of_equivalence_is_the_larger_of_two_one_sided_ones():
    assert equivalence_p(DIFFERENCES, 0.5) == pytest.approx(t.sf((0.5 - 0.05) / 0.0645497, 3), rel=1e-5)
    assert equivalence_p([-value for value in DIFFERENCES], 0.5) == pytest.approx(equivalence_p(DIFFERENCES, 0.5))
    assert equivalence_p(DIFFERENCES, 0.05) == pytest.approx(0.5)  # the mean is on the margin


def test_equivalence_at_5_percent_is_a_90_percent_interval_within_the_margin():
    mean, half = mean_interval(DIFFERENCES)
    half_90 = half * t.ppf(0.95, 3) / t.ppf(0.975, 3)
    assert equivalence_p(DIFFERENCES, mean + half_90 + 1e-6) < 0.05 < equivalence_p(DIFFERENCES, mean + half_90 - 1e-6)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([], []),
    ],
)
def test_holms_correction_is_that_worked_out_by_hand(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.1, 0.9, 1.0, 1.2, 0.8], "better"),
        ([-1.1, -0.9, -1.0, -1.2, -0.8], "worse"),
        ([0.02, -0.03, 0.01, 0.0, -0.01], "equivalent"),
        ([0.10, 0.11, 0.09, 0.12, 0.08], "equivalent"),  # a difference, but smaller than anybody cares about
        ([2.0, -1.5, 0.7, -0.9, 1.1], "undecided"),
        ([0.0, 0.0, 0.0], "equivalent"),
        ([0.7, 0.7, 0.7], "better"),
        ([-0.5, -0.5], "worse"),  # on the margin, so not within it
    ],
)
def test_the_verdict_follows_from_both_tests(differences, verdict):
    (comparison,) = compare_endpoints({"accuracy": differences}, margin=0.5)
    assert comparison.verdict == verdict
    mean, half = mean_interval(differences)
    assert (comparison.difference, comparison.half_interval, comparison.pairs) == (mean, half, len(differences))


def test_more_endpoints_make_a_verdict_harder():
    differences = [1.2, 0.1, 0.9, 0.4, 0.6]  # p = 0.029
    noise = {f"noise {i}": [2.0, -1.5, 0.7, -0.9, 1.1] for i in range(2)}
    (alone,) = compare_endpoints({"P1": differences}, margin=0.1)
    first, *others = compare_endpoints({"P1": differences, **noise}, margin=0.1)
    assert alone.difference_p == pytest.approx(difference_p(differences))
    assert first.difference_p == pytest.approx(3 * alone.difference_p)
    assert (alone.verdict, first.verdict) == ("better", "undecided")
    assert [other.endpoint for other in others] == ["noise 0", "noise 1"]


def test_each_endpoint_can_have_its_own_margin():
    endpoints = {"accuracy": DIFFERENCES, "loss": DIFFERENCES}
    wide, narrow = compare_endpoints(endpoints, {"accuracy": 0.5, "loss": 0.1})
    assert (wide.margin, narrow.margin) == (0.5, 0.1)
    assert (wide.verdict, narrow.verdict) == ("equivalent", "undecided")


def test_a_comparison_is_said_in_one_line():
    (comparison,) = compare_endpoints({"Pets": DIFFERENCES}, margin=0.5)
    assert str(comparison) == (
        "Pets: equivalent within ±0.5; difference +0.05 (95 % interval -0.1554 to +0.2554, n = 4), p = 0.5 for a "
        "difference and 0.003 for equivalence, corrected by Holm's method"
    )


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, float("nan")], [0.1, float("inf")]])
def test_too_few_pairs_and_values_that_are_not_finite_are_refused(differences):
    with pytest.raises(ValueError, match="must be two finite numbers or more"):
        compare_endpoints({"accuracy": differences}, 0.5)


@pytest.mark.parametrize("margin", [0, -0.5, float("nan")])
def test_a_margin_that_is_not_positive_is_refused(margin):
    with pytest.raises(ValueError, match="must be above 0"):
        compare_endpoints({"accuracy": DIFFERENCES}, margin)


def test_runs_are_paired_by_seed():
    runs, others = (
        [Run("", attn, seed, accuracy, 1, 1.0) for seed, accuracy in accuracies.items()]
        for attn, accuracies in (("diff", {2: 0.75, 0: 0.5, 7: 0.9}), ("plain", {0: 0.25, 1: 0.8, 2: 0.5}))
    )
    assert paired_differences(runs, others) == [0.25, 0.25]
