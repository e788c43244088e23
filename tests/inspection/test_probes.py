"""The probes against scikit-learn's neighbours and logistic regression, and a plain loop of SGD."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from diffvit_timm.inspection import probes
from diffvit_timm.inspection.probes import PROBES, LabelledFeatures, run_probe

CLASSES = 4


@pytest.fixture
def clouds():
    """Four overlapping clouds: train, val, and the features and labels of test."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, 12))

    def draw(count):
        labels = rng.integers(0, CLASSES, count)
        return LabelledFeatures((centres[labels] + 1.5 * rng.normal(size=(count, 12))).astype(np.float32), labels)

    return draw(120), draw(60), draw(200)


@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_beats_guessing_and_reports_its_validation_accuracy(clouds, probe):
    train, val, test = clouds
    fit = run_probe(probe, train, val, test.x, CLASSES)
    assert (fit.predictions == test.y).mean() > 0.6
    again = run_probe(probe, train, val, val.x, CLASSES)
    assert again.setting == fit.setting
    assert (again.predictions == val.y).mean() == fit.val_accuracy


def test_neighbours_vote_as_those_of_scikit_learn(clouds, monkeypatch):
    train, val, test = clouds
    monkeypatch.setattr(probes, "NEIGHBOURS", (7,))
    monkeypatch.setattr(probes, "QUERIES", 64)
    fit = run_probe("knn", train, val, test.x, CLASSES)

    def weights(distances):
        return np.exp((1 - distances.astype(np.float64)) / 0.07)

    reference = KNeighborsClassifier(7, metric="cosine", weights=weights, algorithm="brute").fit(train.x, train.y)
    np.testing.assert_array_equal(fit.predictions, reference.predict(test.x))
    assert fit.setting == "k=7"


def test_there_are_no_more_neighbours_than_training_images(clouds):
    train, val, test = clouds
    few = LabelledFeatures(train.x[:8], train.y[:8])
    assert run_probe("knn", few, val, test.x, CLASSES).setting in ("k=1", "k=5")


def test_the_linear_classifier_is_that_of_plain_sgd(clouds, monkeypatch):
    train, val, test = clouds
    monkeypatch.setattr(probes, "LEARNING_RATES", (0.03,))
    monkeypatch.setattr(probes, "EPOCHS", 5)
    monkeypatch.setattr(probes, "BATCH_SIZE", 50)
    fit = run_probe("linear", train, val, test.x, CLASSES)
    mean, std = train.x.mean(0), train.x.std(0) + 1e-6
    x, x_test = (torch.from_numpy((part - mean) / std) for part in (train.x, test.x))
    linear = torch.nn.Linear(12, CLASSES)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.03, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for rows in torch.randperm(120, generator=generator).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(x[rows]), torch.from_numpy(train.y)[rows]).backward()
            optimizer.step()
            schedule.step()
    np.testing.assert_array_equal(fit.predictions, linear(x_test).argmax(1).numpy())


def test_the_logistic_regression_has_the_best_penalty_on_the_validation_images(clouds):
    train, val, test = clouds
    fit = run_probe("logreg", train, val, test.x, CLASSES)
    mean, std = train.x.mean(0), train.x.std(0) + 1e-6
    references = {
        f"C={c:.3g}": LogisticRegression(C=c, max_iter=300).fit((train.x - mean) / std, train.y)
        for c in probes.PENALTIES
    }
    scores = {name: model.score((val.x - mean) / std, val.y) for name, model in references.items()}
    assert scores[fit.setting] == max(scores.values()) == fit.val_accuracy
    np.testing.assert_array_equal(fit.predictions, references[fit.setting].predict((test.x - mean) / std))


@pytest.mark.parametrize(
    ("probe", "best", "at_edge"),
    [("linear", 0, True), ("linear", 1, False), ("linear", 2, True), ("knn", 0, False), ("knn", 2, True)],
)
def test_a_setting_at_the_edge_of_those_that_were_tried_is_marked(clouds, monkeypatch, probe, best, at_edge):
    train, val, test = clouds
    scores = [(val.y if place == best else 0 * val.y, test.y) for place in range(3)]
    monkeypatch.setitem(probes.PREDICTORS, probe, lambda *_: (["a", "b", "c"], scores))
    fit = run_probe(probe, train, val, test.x, CLASSES)
    assert (fit.setting, fit.val_accuracy, fit.at_edge) == ("abc"[best], 1.0, at_edge)
