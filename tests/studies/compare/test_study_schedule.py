"""Choice of the learning rates: the best is inside its grid, and the order goes round the arms."""

import dataclasses
from collections import Counter

import pytest
from study_fixtures import ledger, protocol, row, tuned

from diffvit_timm.studies.compare.protocol import Planned
from diffvit_timm.studies.compare.schedule import MAX_EXTENSIONS, plan_tests, plan_tuning, tuning


def test_the_rate_with_the_highest_mean_validation_accuracy_is_chosen(tmp_path):
    study = protocol()
    scores = {
        (0.01, 100): 0.5,
        (0.01, 101): 0.5,
        (0.02, 100): 0.4,
        (0.02, 101): 0.7,
        (0.04, 100): 0.6,
        (0.04, 101): 0.3,
    }
    rows = [row(study, "plain", "tune", rate, seed, score) for (rate, seed), score in scores.items()]
    found = tuning(study, ledger(study, tmp_path, rows), study.arm("plain"))
    assert (found.rates, found.best, found.at_edge) == ((0.01, 0.02, 0.04), 0.02, False)


def test_no_rate_is_chosen_while_a_run_is_missing(tmp_path):
    study = protocol()
    rows = tuned(study, "plain", {0.01: 0.1, 0.02: 0.9, 0.04: 0.1})[:-1]
    assert tuning(study, ledger(study, tmp_path, rows), study.arm("plain")).best is None


def test_the_lower_of_two_equal_rates_is_chosen(tmp_path):
    study = protocol()
    study = dataclasses.replace(
        study, arms=tuple(dataclasses.replace(a, rates=(1.0, 2.0, 4.0, 8.0)) for a in study.arms)
    )
    rows = tuned(study, "plain", {1.0: 0.1, 2.0: 0.5, 4.0: 0.5, 8.0: 0.2})
    assert tuning(study, ledger(study, tmp_path, rows), study.arm("plain")).best == 2.0


@pytest.mark.parametrize(
    ("peak", "grid"),
    [(0.08, (0.01, 0.02, 0.04, 0.08, 0.16)), (0.005, (0.0025, 0.005, 0.01, 0.02, 0.04)), (0.02, (0.01, 0.02, 0.04))],
)
def test_the_grid_is_extended_by_the_ratio_of_its_neighbours_until_the_best_is_inside(tmp_path, peak, grid):
    study = protocol()
    found = ledger(study, tmp_path)
    asked = []
    while missing := plan_tuning(study, found, ["plain"]):
        asked.append(missing[0])
        found.add(row(study, *vars(missing[0]).values(), 1 - abs(missing[0].rate - peak)))
    result = tuning(study, found, study.arm("plain"))
    assert (result.rates, result.best, result.at_edge) == (grid, peak, False)
    assert len(asked) == len(set(asked)) == 2 * len(grid)


def test_the_grid_is_extended_at_most_four_times_and_the_edge_is_reported(tmp_path):
    study = protocol()
    found = ledger(study, tmp_path)
    while missing := plan_tuning(study, found, ["plain"]):
        found.add(row(study, *vars(missing[0]).values(), min(1.0, missing[0].rate)))
    result = tuning(study, found, study.arm("plain"))
    assert result.rates == (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
    assert len(result.rates) == 3 + MAX_EXTENSIONS
    assert (result.best, result.at_edge) == (0.64, True)


def test_runs_that_diverged_count_as_zero_so_that_the_grid_grows_downwards(tmp_path):
    study = protocol()
    found = ledger(study, tmp_path, tuned(study, "plain", {0.01: 0.0, 0.02: 0.0, 0.04: 0.0}))
    assert tuning(study, found, study.arm("plain")).rates == (0.005, 0.01, 0.02, 0.04)


def test_after_any_number_of_runs_the_arms_have_equally_many_within_one(tmp_path):
    study = protocol()
    order = plan_tuning(study, ledger(study, tmp_path), ["plain", "first", "second"])
    assert len(order) == 3 * 3 * 2
    for count in range(1, len(order) + 1):
        runs = Counter(run.arm for run in order[:count])
        assert max(runs.values()) - min(runs[name] for name in ("plain", "first", "second")) <= 1
    assert [run.arm for run in order[:3]] == ["plain", "first", "second"]
    assert {run.seed for run in order[:9]} == {100}  # a seed is complete before the next one


def test_tests_run_at_the_best_rate_of_each_arm_and_in_the_order_of_the_seeds(tmp_path):
    study = protocol()
    rows = [*tuned(study, "plain", {0.01: 0.1, 0.02: 0.9, 0.04: 0.1}), *tuned(study, "first", {0.01: 0.5})]
    found = ledger(study, tmp_path, rows)
    assert plan_tests(study, found, ["plain", "first"]) == [Planned("plain", "test", 0.02, seed) for seed in range(4)]
    found.add(row(study, "plain", "test", 0.02, 1, endpoint=0.5))
    assert [run.seed for run in plan_tests(study, found, ["plain"])] == [0, 2, 3]


def test_of_rates_whose_accuracies_have_the_same_mean_the_lower_one_is_chosen(tmp_path):
    study = protocol()
    rows = [
        row(study, "plain", "tune", rate, seed, right / 500)
        for rate, pair in {0.01: (100, 100), 0.02: (170, 172), 0.04: (171, 171), 0.08: (100, 100)}.items()
        for seed, right in zip(study.tuning_seeds, pair, strict=True)
    ]
    assert tuning(study, ledger(study, tmp_path, rows), study.arm("plain")).best == 0.02
