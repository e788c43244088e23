"""The report of a study: tables, sentences and pictures from rows that are written down here."""

import json

import pytest
from matplotlib.collections import PathCollection
from scipy.stats import ttest_rel
from study_fixtures import ledger, protocol, row, tuned

from diffvit_timm.studies.compare.pictures import plot_differences, plot_rates
from diffvit_timm.studies.compare.report import report_text, summarise_study, summary_json
from diffvit_timm.studies.verdicts import holm

BASE = [0.60, 0.62, 0.61, 0.59]


def summary(tmp_path, differences, **options):
    """Return the summary of a study in which the arms differ from the baseline by these points per seed."""
    study = protocol(**options)
    rows = [entry for arm in study.arms for entry in tuned(study, arm.name, {0.01: 0.3, 0.02: 0.4, 0.04: 0.3})]
    values = {
        "plain": BASE,
        **{k: [b + d / 100 for b, d in zip(BASE, v, strict=False)] for k, v in differences.items()},
    }
    rows += [row(study, k, "test", 0.02, seed, 0.4, e) for k, own in values.items() for seed, e in enumerate(own)]
    return summarise_study(study, ledger(study, tmp_path, rows))


def test_the_verdicts_are_those_of_paired_tests_corrected_over_the_arms(tmp_path):
    differences = {"first": [5.0, 5.2, 4.9, 5.1], "second": [-0.3, 0.4, 1.5, -1.6]}
    found = {arm.name: arm for arm in summary(tmp_path, differences).arms}
    p = holm(
        [ttest_rel([b + d / 100 for b, d in zip(BASE, v, strict=True)], BASE).pvalue for v in differences.values()]
    )
    assert [found[name].comparison.difference_p for name in differences] == pytest.approx(p)
    assert found["first"].comparison.verdict == "better"
    assert found["second"].comparison.verdict == "undecided"
    assert found["plain"].comparison is None
    assert found["first"].comparison.difference == pytest.approx(5.05)
    assert found["plain"].mean == pytest.approx(0.605)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([5.0, 5.2, 4.9, 5.1], "**first** is better than plain (+5.05 points, 95 % interval +4.84 to +5.26, n = 4)."),
        ([-5.0, -5.2, -4.9, -5.1], "**first** is worse than plain (-5.05 points, 95 % interval -5.26 to "
                                    "-4.84, n = 4)."),
        ([0.1, 0.0, -0.1, 0.0], "**first** is equal to plain within 0.5 points (+0.00 points, 95 % interval -0.13 to "
                                "+0.13, n = 4)."),
        ([3.0, -2.0, 1.0, 0.0], "**first** and plain: undecided with n = 4 (+0.50 points, 95 % interval -2.81 "
                                "to +3.81)."),
        ([3.0], "So far: **first** and plain: undecided with n = 1."),
        ([], "So far: **first** and plain: undecided with n = 0."),
    ],
)  # fmt: skip
def test_one_sentence_says_what_was_found(tmp_path, values, sentence):
    found = summary(tmp_path, {"first": values, "second": [0.0] * 4})
    text = report_text(found)
    assert f"- {sentence}\n" in text.replace("-0.00 points", "+0.00 points")
    assert ("**The study is not complete:**" in text) == (len(values) < 4)


def test_only_seeds_that_both_arms_have_are_paired(tmp_path):
    found = summary(tmp_path, {"first": [1.0, 2.0], "second": []})
    assert found.arms[1].differences == pytest.approx([1.0, 2.0])
    assert found.missing == {"tune": 0, "test": 6}


def test_test_runs_at_a_rate_that_is_no_longer_the_best_are_not_compared(tmp_path):
    study = protocol()
    rows = tuned(study, "plain", {0.01: 0.3, 0.02: 0.4, 0.04: 0.3})
    rows += [row(study, "plain", "test", 0.01, 0, 0.4, 0.9), row(study, "plain", "test", 0.02, 0, 0.4, 0.5)]
    assert summarise_study(study, ledger(study, tmp_path, rows)).arms[0].endpoints == [0.5]


def test_the_report_has_a_row_per_arm_and_says_what_diverged_and_which_rate_is_at_the_edge(tmp_path):
    study = protocol()
    rates = {0.01 * 2**k: 0.1 * k for k in range(7)}
    rows = [*tuned(study, "plain", {0.01: 0.3, 0.02: 0.4, 0.04: 0.3}), *tuned(study, "first", rates)]
    rows += [row(study, "plain", "test", 0.02, seed, 0.4, 0.5 + seed / 100) for seed in range(4)]
    unknown = dict.fromkeys(("parameters", "flops", "test_loss", "calibration_error"))
    rows += [row(study, "first", "test", 0.64, 0, 0.0, 0.0, diverged=True, **unknown)]
    text = report_text(summarise_study(study, ledger(study, tmp_path, rows)))
    assert "| plain | 0.02 | 4 | 51.50 ± 1.29 % |" in text
    assert "| baseline | 1.000 | 0.250 | 1,000 | 2.0 | 2 |" in text
    assert "1 test runs of first diverged and count as an accuracy of 0." in text
    assert "The best rate of first is at the edge of its grid, which was not extended further." in text
    assert "**0.02: 40.00%**" in text
    assert "0.01: missing, 0.02: missing, 0.04: missing" in text
    assert "- 25 runs: a processor, 1 threads; torch 2" in text


def test_the_pictures_show_every_run_and_every_pair(tmp_path, saved_figures):
    found = summary(tmp_path, {"first": [1.0, 2.0, 1.5, 0.5], "second": [0.1]})
    plot_rates(found, tmp_path / "rates.png")
    plot_differences(found, tmp_path / "differences.png")
    rates, differences = saved_figures
    assert [len(axis.collections[0].get_offsets()) for axis in rates.axes[:3]] == [6, 6, 6]
    (axis,) = differences.axes
    dots = [part for part in axis.collections if isinstance(part, PathCollection)]
    assert [len(part.get_offsets()) for part in dots] == [4, 1]
    verdict = found.arms[1].comparison.verdict
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"first ({verdict})", "second (undecided)"]
    json.dumps(summary_json(found))


def test_an_empty_study_has_a_report_without_numbers(tmp_path):
    study = protocol()
    found = summarise_study(study, ledger(study, tmp_path))
    assert "18 runs that choose rates and 12 test runs are missing" in report_text(found)
    plot_differences(found, tmp_path / "differences.png")


def test_two_arms_that_diverged_are_not_called_equal(tmp_path):
    study = protocol()
    rows = [entry for arm in study.arms for entry in tuned(study, arm.name, {0.01: 0.3, 0.02: 0.4, 0.04: 0.3})]
    rows += [
        row(study, arm.name, "test", 0.02, seed, 0.0, 0.0, diverged=True)
        for arm in study.arms for seed in study.test_seeds
    ]  # fmt: skip
    text = report_text(summarise_study(study, ledger(study, tmp_path, rows)))
    assert "- **first** and plain: undecided with n = 4.\n" in text
    assert "is equal" not in text


def test_runs_of_a_tuning_seed_that_was_dropped_are_not_in_the_report(tmp_path):
    both = protocol()
    rows = [entry for arm in both.arms for entry in tuned(both, arm.name, {0.01: 0.3, 0.02: 0.4, 0.04: 0.3})]
    one = protocol(tuning_seeds=(100,))
    found = summarise_study(one, ledger(one, tmp_path, rows))
    assert len(found.tuned) == 9
    assert {entry.seed for entry in found.tuned} == {100}
