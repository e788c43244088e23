"""The average precision is that of scikit-learn, and its interval is that of resampled images."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from diffvit_timm.inspection.average_precision import MultiLabelScore, average_precisions


def draw(images=200, classes=6, digits=None, seed=0):
    """Return scores (images, classes), rounded to so many digits, and which of them are true."""
    rng = np.random.default_rng(seed)
    is_true = rng.random((images, classes)) < np.linspace(0.05, 0.9, classes)
    scores = rng.normal(size=is_true.shape) + is_true
    return scores if digits is None else scores.round(digits), is_true


@pytest.mark.parametrize("digits", [None, 1, 0])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_it_is_that_of_scikit_learn_also_with_equal_scores_and_weights(digits, is_weighted):
    scores, is_true = draw(digits=digits)
    weights = np.random.default_rng(1).integers(0, 4, len(scores)) if is_weighted else None
    expected = average_precision_score(is_true, scores, average=None, sample_weight=weights)
    assert average_precisions(scores, is_true, weights) == pytest.approx(expected)


def test_float32_logits_of_one_class_are_ranked_like_any_others():
    scores, is_true = draw(images=50, classes=1)
    assert average_precisions(scores.astype(np.float32), is_true)[0] == pytest.approx(
        average_precision_score(is_true[:, 0], scores[:, 0]), abs=1e-6
    )


def test_a_class_without_images_has_no_precision_and_does_not_count():
    scores, is_true = draw()
    is_true[:, 2] = False
    score = MultiLabelScore(scores, is_true)
    assert np.isnan(score.precisions).tolist() == [False, False, True, False, False, False]
    assert score.mean_average_precision == pytest.approx(np.delete(score.precisions, 2).mean())


def test_a_perfect_ranking_has_the_precision_1_and_no_spread():
    _, is_true = draw()
    score = MultiLabelScore(is_true.astype(float), is_true)
    assert score.mean_average_precision == 1
    assert score.interval == (1, 1)


def test_the_interval_is_about_as_wide_as_the_spread_of_new_images():
    """95 % of new draws of the same distribution lie in an interval of this width."""
    score = MultiLabelScore(*draw(images=400))
    low, high = score.interval
    assert low < score.mean_average_precision < high
    means = [MultiLabelScore(*draw(images=400, seed=seed)).mean_average_precision for seed in range(1, 200)]
    spread = np.diff(np.percentile(means, [2.5, 97.5]))[0]
    assert high - low == pytest.approx(spread, rel=0.25)
    assert score.interval == MultiLabelScore(*draw(images=400)).interval  # the same resamples every time
