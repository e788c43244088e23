"""A part of a split has its class proportions, and loses no class that it could keep."""

import numpy as np
import pytest
from datasets import Dataset

from diffvit_timm.data.splits import take_per_class, take_stratified


def split_of(*sizes):
    """Return a split with so many rows per class, sorted by class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})


def sizes_of(data, classes):
    return np.bincount(data["label"], minlength=classes).tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 10, 57, 99, 100, 399, 400])
def test_classes_of_one_size_differ_by_at_most_one_row(count):
    sizes = sizes_of(take_stratified(split_of(*[40] * 10), count), 10)
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1000, [900, 90, 10]), (500, [450, 45, 5]), (100, [90, 9, 1]), (10, [8, 1, 1]), (3, [1, 1, 1]), (2, [1, 1, 0])],
)
def test_a_part_has_the_class_proportions_and_every_class_that_it_can_keep(count, expected):
    assert sizes_of(take_stratified(split_of(900, 90, 10), count), 3) == expected


def test_a_class_without_rows_stays_without_rows():
    assert sizes_of(take_stratified(split_of(6, 0, 3), 3), 3) == [2, 0, 1]


def test_rows_are_drawn_at_random_by_a_fixed_seed():
    data = split_of(500, 500)
    first, again = (take_stratified(data, 100)["row"] for _ in range(2))
    assert list(first) == list(again)
    assert len(set(first)) == 100
    assert np.mean(first) == pytest.approx(500, abs=60)  # from the whole split
    labels = take_stratified(data, 100)["label"]
    assert 5 < sum(labels[:20]) < 15  # in a random order
    assert sorted(take_stratified(data, 1000)["row"]) == list(range(1000))


def test_every_class_has_as_many_rows_as_asked_for_or_all_that_it_has():
    data = split_of(30, 4, 0, 12)
    assert sizes_of(take_per_class(data, 10), 4) == [10, 4, 0, 10]
    assert sizes_of(take_per_class(data, 1), 4) == [1, 1, 0, 1]


@pytest.mark.parametrize("take", [take_per_class, take_stratified])
def test_another_seed_draws_other_rows(take):
    data = split_of(500, 500)
    rows = [set(take(data, 20, seed)["row"]) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def test_classes_with_equal_remainders_are_chosen_at_random():
    chosen = set(take_stratified(split_of(*[10] * 100), 10)["label"])
    assert len(chosen) == 10
    assert chosen != set(range(10))
