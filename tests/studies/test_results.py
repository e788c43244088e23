"""Tables, paired differences and figures of finished runs."""

import csv

import pytest
from PIL import Image
from scipy.stats import ttest_1samp

from diffvit_timm.studies.results import Run, difference, plot_study, summarise, write_csv


def runs_of(setting, diff, plain):
    return [
        Run(setting, attn, seed, accuracy, 100, 10.0 + seed)
        for attn, accuracies in (("diff", diff), ("plain", plain))
        for seed, accuracy in enumerate(accuracies)
    ]


RUNS = [*runs_of("4 x 4", [0.70, 0.72, 0.71], [0.69, 0.70, 0.70]), *runs_of("8 x 8", [0.60], [0.61])]


def test_a_summary_has_the_mean_and_the_sample_deviation_over_its_seeds():
    rows = summarise(RUNS)
    assert [(row.setting, row.attn, row.seeds) for row in rows] == [
        ("4 x 4", "diff", 3), ("4 x 4", "plain", 3), ("8 x 8", "diff", 1), ("8 x 8", "plain", 1)
    ]  # fmt: skip
    assert rows[0].mean == pytest.approx(0.71)
    assert rows[0].deviation == pytest.approx(0.01)
    assert rows[0].seconds == 11.0
    assert rows[2].deviation is None


def of(setting, attn):
    return [run for run in RUNS if (run.setting, run.attn) == (setting, attn)]


def test_the_difference_is_paired_by_seed_and_has_students_interval():
    mean, half, n = difference(of("4 x 4", "diff"), of("4 x 4", "plain"))
    low, high = ttest_1samp([0.01, 0.02, 0.01], 0.0).confidence_interval(0.95)
    assert (mean, n) == (pytest.approx(0.04 / 3), 3)
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert difference(of("8 x 8", "diff"), of("8 x 8", "plain")) == (pytest.approx(-0.01), None, 1)


def test_seeds_of_only_one_group_are_left_out():
    assert difference(of("4 x 4", "diff"), of("8 x 8", "diff"))[1:] == (None, 1)
    with pytest.raises(ValueError, match="no seed in common"):
        difference(of("2 x 2", "diff"), RUNS)


def test_the_csv_has_one_row_per_run(tmp_path):
    write_csv(RUNS, tmp_path / "study.csv")
    with (tmp_path / "study.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(RUNS)
    assert lines[1] == dict(setting="4 x 4", attn="diff", seed="1", accuracy="0.72", parameters="100", seconds="11.0")


def test_the_figure_has_one_line_per_setting(tmp_path, saved_figures):
    plot_study(RUNS, tmp_path / "study.png", "patch size on digits")
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.size[0] == 960
    (axis,) = saved_figures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["4 x 4", "8 x 8"]
    assert saved_figures[0].get_suptitle() == "patch size on digits"
    assert sum(len(dots.get_offsets()) for dots in axis.collections) == len(RUNS)
