"""Power laws with their intervals, and their figure."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from diffvit_timm.studies.power_law import Point, fit_power_law, loss_ratio, plot_scaling


def points(attn="diff", sizes=(1e5, 2e5, 4e5, 8e5), seeds=3, noise=0.0, draw=0):
    """Points with loss = 10 N^-0.2, times a random error per run."""
    rng = np.random.default_rng(draw)
    return [
        Point(f"{n:g}", attn, seed, int(n), int(64 * n), 10 * n**-0.2 * np.exp(noise * rng.normal()), 0.5)
        for n in sizes
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("axis", ["parameters", "flops"])
def test_the_fit_recovers_a_power_law(axis):
    law = fit_power_law(points(), axis)
    assert law.exponent == pytest.approx(0.2)
    assert law(np.array([getattr(point, axis) for point in points()])) == pytest.approx([p.loss for p in points()])
    assert law.interval == (pytest.approx(0.2), pytest.approx(0.2))


def test_one_run_per_size_gives_no_interval():
    law = fit_power_law(points(seeds=1), "parameters")
    assert law.interval is law.misfit is None
    assert loss_ratio([*points(seeds=1), *points("plain", seeds=1)], "flops").interval is None


def test_the_interval_of_three_seeds_covers_the_true_value_in_95_of_100_cases():
    laws = [fit_power_law(points(noise=0.05, draw=draw), "parameters") for draw in range(400)]
    held = np.mean([law.interval[0] < 0.2 < law.interval[1] for law in laws])
    assert 0.92 < held < 0.98
    both = [[*points(noise=0.05, draw=draw), *points("plain", noise=0.05, draw=1000 + draw)] for draw in range(400)]
    ratios = [loss_ratio(pair, "flops") for pair in both]
    assert 0.92 < np.mean([ratio.interval[0] < 1 < ratio.interval[1] for ratio in ratios]) < 0.98


def test_a_misfit_is_detected_and_falsely_detected_in_5_of_100_cases():
    laws = [fit_power_law(points(noise=0.05, draw=draw), "parameters") for draw in range(400)]
    assert 0.02 < np.mean([law.misfit < 0.05 for law in laws]) < 0.08
    bent = [
        dataclasses.replace(p, loss=p.loss * (1.2 if p.parameters in (100_000, 800_000) else 1.0))
        for p in points(noise=0.05)
    ]
    assert fit_power_law(bent, "flops").misfit < 0.01


def test_a_size_with_two_names_counts_once():
    twice = [dataclasses.replace(p, size=f"{p.size} again") for p in points(sizes=(1e5, 2e5))]
    assert fit_power_law([*points(sizes=(1e5, 2e5)), *twice], "parameters") is None


def test_three_sizes_are_too_few():
    assert fit_power_law(points(sizes=(1e5, 2e5, 4e5), seeds=9), "parameters") is None


@pytest.mark.parametrize("axis", ["parameters", "flops"])
def test_the_loss_at_equal_size_is_compared_even_if_no_two_sizes_are_equal(axis):
    larger = [
        dataclasses.replace(p, parameters=3 * p.parameters, flops=3 * p.flops, loss=0.9 * p.loss) for p in points()
    ]
    found = loss_ratio([*larger, *points("plain")], axis)
    assert found.ratio == pytest.approx(0.9 * 3**0.2)
    assert found.interval == (pytest.approx(found.ratio), pytest.approx(found.ratio))


def test_a_third_kind_of_attention_does_not_change_the_comparison():
    both = [*points(noise=0.05), *points("plain", noise=0.05, draw=1)]
    assert loss_ratio([*both, *points("diff_v2", noise=9.0)], "parameters") == loss_ratio(both, "parameters")


@pytest.mark.parametrize("few", ["diff", "plain"])
def test_a_comparison_needs_four_sizes_of_both(few):
    four = points("plain" if few == "diff" else "diff")
    assert loss_ratio([*four, *points(few, sizes=(1e5, 2e5, 4e5))], "flops") is None


@pytest.mark.parametrize(
    ("sizes", "label"), [((1e5, 2e5, 4e5, 8e5), "diff: exponent 0.200"), ((1e5, 2e5), "too few sizes")]
)
def test_the_legend_shows_the_law_or_that_there_are_too_few_sizes(sizes, label, tmp_path, saved_figures):
    plot_scaling([*points(sizes=sizes), *points("plain", sizes=sizes)], tmp_path / "scaling.png", "digits")
    with Image.open(tmp_path / "scaling.png") as picture:
        assert picture.size[0] == 1320
    for axis in saved_figures[0].axes:
        assert label in axis.get_legend().get_texts()[0].get_text()
        assert sum(len(dots.get_offsets()) for dots in axis.collections) == 2 * 3 * len(sizes)
