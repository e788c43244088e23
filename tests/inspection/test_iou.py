"""Intersection over union against scikit-learn's Jaccard score, and its intervals."""

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from diffvit_timm.inspection.iou import Segmentations, mean_iou, paired_iou_difference

CLASSES, IGNORED = 4, 255


def random_pairs(seed, images=12, agreement=0.6):
    rng = np.random.default_rng(seed)
    true = [rng.integers(0, CLASSES, (5 + i, 7)).astype(np.uint8) for i in range(images)]
    noise = np.random.default_rng(seed + 1)
    predicted = [np.where(noise.random(t.shape) < agreement, t, noise.integers(0, CLASSES, t.shape)) for t in true]
    for mask in true:
        mask[0, :2] = IGNORED
    return list(zip(predicted, true, strict=True))


def test_the_mean_iou_is_the_jaccard_score_of_all_pixels_that_have_a_class():
    pairs = random_pairs(0)
    counts = Segmentations.of(pairs, CLASSES, IGNORED)
    predicted, true = (np.concatenate([mask.ravel() for mask in masks]) for masks in zip(*pairs, strict=True))
    counted = true != IGNORED
    expected = jaccard_score(true[counted], predicted[counted], average=None)
    np.testing.assert_allclose(counts.per_class, expected)
    iou, low, high = mean_iou(counts)
    assert iou == pytest.approx(expected.mean())
    assert low < iou < high
    assert counts.pixel_accuracy == pytest.approx((true == predicted)[counted].mean())


def test_a_class_that_occurs_nowhere_does_not_count():
    counts = Segmentations.of(random_pairs(0), CLASSES + 2, IGNORED)
    assert np.isnan(counts.per_class[CLASSES:]).all()
    assert mean_iou(counts)[0] == pytest.approx(np.nanmean(counts.per_class))


def test_a_perfect_segmentation_has_an_iou_of_1_and_no_spread():
    pairs = [(true, true) for _, true in random_pairs(0)]
    assert mean_iou(Segmentations.of(pairs, CLASSES, IGNORED)) == (1.0, 1.0, 1.0)


def test_the_interval_is_that_of_a_plain_bootstrap():
    counts = Segmentations.of(random_pairs(0, images=40), CLASSES, IGNORED)
    rng, means = np.random.default_rng(7), []
    for _ in range(2000):
        rows = rng.integers(0, 40, 40)
        means.append((counts.intersection[rows].sum(0) / counts.union[rows].sum(0)).mean())
    np.testing.assert_allclose(mean_iou(counts)[1:], np.percentile(means, [2.5, 97.5]), atol=0.005)


def test_the_difference_of_a_network_to_itself_is_0_and_pairs_narrow_the_interval():
    pairs = random_pairs(0, images=40)
    first = Segmentations.of(pairs, CLASSES, IGNORED)
    assert paired_iou_difference(first, first) == (0.0, 0.0, 0.0)
    better = [(np.where(np.arange(p.size).reshape(p.shape) % 9, p, t), t) for p, t in pairs]
    second = Segmentations.of(better, CLASSES, IGNORED)
    difference, low, high = paired_iou_difference(second, first)
    assert difference == pytest.approx(mean_iou(second)[0] - mean_iou(first)[0])
    assert 0 < low < difference < high
    _, first_low, first_high = mean_iou(first)
    assert high - low < first_high - first_low
