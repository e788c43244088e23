"""Classify the features of a frozen network: by the nearest neighbours, or by a linear classifier.

Each probe learns from training features, and chooses its one setting by the accuracy on validation features.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

__all__ = ["PROBES", "Fit", "LabelledFeatures", "Probe", "fit_logistic_regressions", "run_probe", "standardisation"]

Probe = Literal["knn", "linear", "logreg"]
PROBES: tuple[Probe, ...] = get_args(Probe)

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07  # of the votes
QUERIES = 1024  # images whose neighbours are searched at a time

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
EPOCHS, BATCH_SIZE = 100, 256

# Values of scikit-learn's C, the inverse of the L2 penalty, on standardised features.
PENALTIES = tuple(10.0**exponent for exponent in np.arange(-3.0, 1.1, 0.5))


class LabelledFeatures(NamedTuple):
    """Features (images, width), float32, and class indices (images,) of a split."""

    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fit:
    """The predictions of a probe, and the setting that it chose.

    Attributes:
        setting: the chosen setting, such as 'k=20'.
        val_accuracy: accuracy on the validation images, by which the setting was chosen.
        predictions: predicted class of each test image, (images,).
        at_edge: whether a better setting may lie beyond those that were tried.
    """

    setting: str
    val_accuracy: float
    predictions: np.ndarray
    at_edge: bool


def run_probe(
    probe: Probe, train: LabelledFeatures, val: LabelledFeatures, test: np.ndarray, classes: int, device: str = "cpu"
) -> Fit:
    """Fit a probe, and classify test images.

    Args:
        probe: `knn`: votes of the k nearest training images in cosine similarity, weighted by exp(similarity / 0.07),
            as in `Wu et al. 2018` (https://arxiv.org/abs/1805.01978) and DINO (https://arxiv.org/abs/2104.14294).
            `linear`: a linear classifier, 100 epochs of SGD with momentum and a cosine decay, as in DINO, without
            augmentation. `logreg`: logistic regression with an L2 penalty, fitted to convergence by L-BFGS.
        train, val: features to learn from, and to choose k, the learning rate or the penalty by.
        test: features to classify, (images, width).
        classes: number of classes.
        device: device for knn and linear; logreg is scikit-learn's.
    """
    names, scores = PREDICTORS[probe](train, val.x, test, classes, device)
    accuracies = [float((val_predictions == val.y).mean()) for val_predictions, _ in scores]
    best = int(np.argmax(accuracies))  # of equal ones the first
    at_edge = best == len(names) - 1 or (best == 0 and probe != "knn")  # there is no k below 1
    return Fit(names[best], accuracies[best], scores[best][1], at_edge)


Predictions = list[tuple[np.ndarray, np.ndarray]]  # on val and test, for each setting


def _knn(
    train: LabelledFeatures, val: np.ndarray, test: np.ndarray, classes: int, device: str
) -> tuple[list[str], Predictions]:
    """Vote with every number of neighbours that there are images for."""
    counts = [k for k in NEIGHBOURS if k <= len(train.x)]
    bank = F.normalize(torch.from_numpy(train.x).to(device), dim=1)
    labels = torch.from_numpy(train.y).to(device)
    both = [_votes(bank, labels, torch.from_numpy(x).to(device), counts, classes) for x in (val, test)]
    return [f"k={k}" for k in counts], list(zip(*both, strict=True))


def _votes(bank: Tensor, labels: Tensor, x: Tensor, counts: list[int], classes: int) -> list[np.ndarray]:
    """Return the class with most votes for each number of neighbours: arrays (queries,)."""
    parts: list[list[Tensor]] = [[] for _ in counts]
    for queries in F.normalize(x, dim=1).split(QUERIES):
        similarity, places = (queries @ bank.T).topk(max(counts), dim=1)  # (q, k), the nearest first
        weights, neighbours = (similarity / TEMPERATURE).exp(), labels[places]
        for part, count in zip(parts, counts, strict=True):
            votes = weights.new_zeros(len(queries), classes)
            part.append(votes.scatter_add_(1, neighbours[:, :count], weights[:, :count]).argmax(1))
    return [torch.cat(part).cpu().numpy() for part in parts]


def standardisation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each feature, (width,) each."""
    return x.mean(0), x.std(0) + 1e-6


def _linear(
    train: LabelledFeatures, val: np.ndarray, test: np.ndarray, classes: int, device: str
) -> tuple[list[str], Predictions]:
    """Train one classifier per learning rate, all on the same batches."""
    mean, std = standardisation(train.x)
    x, x_val, x_test = (torch.from_numpy((part - mean) / std).to(device) for part in (train.x, val, test))
    y, rates = torch.from_numpy(train.y).to(device), torch.tensor(LEARNING_RATES, device=device)
    weight = torch.zeros(len(rates), x.shape[1], classes, device=device, requires_grad=True)
    bias = torch.zeros(len(rates), 1, classes, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9)  # the gradients are scaled by the rates
    batches = -(-len(x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).to(device).split(BATCH_SIZE):
            logits = torch.baddbmm(bias, x[rows].expand(len(rates), -1, -1), weight)  # (rates, batch, classes)
            losses = F.cross_entropy(logits.transpose(1, 2), y[rows].expand(len(rates), -1), reduction="none").mean(1)
            optimizer.zero_grad()
            (losses * rates).sum().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        val_predictions, test_predictions = (
            (torch.matmul(part, weight) + bias).argmax(-1).cpu().numpy() for part in (x_val, x_test)
        )
    return [f"lr={rate:g}" for rate in LEARNING_RATES], list(zip(val_predictions, test_predictions, strict=True))


def _logreg(
    train: LabelledFeatures, val: np.ndarray, test: np.ndarray, classes: int, device: str
) -> tuple[list[str], Predictions]:
    mean, std = standardisation(train.x)
    fits = fit_logistic_regressions((train.x - mean) / std, train.y)
    x_val, x_test = (val - mean) / std, (test - mean) / std
    return [f"C={fit.C:.3g}" for fit in fits], [(fit.predict(x_val), fit.predict(x_test)) for fit in fits]


def fit_logistic_regressions(x: np.ndarray, y: np.ndarray) -> list[LogisticRegression]:
    """Fit one logistic regression per penalty, the strongest penalty first.

    Args:
        x: standardised features, (images, width).
        y: class indices, (images,).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits do not matter here
        return [LogisticRegression(C=c, max_iter=300).fit(x, y) for c in PENALTIES]


PREDICTORS: dict[Probe, Callable[..., tuple[list[str], Predictions]]] = {
    "knn": _knn, "linear": _linear, "logreg": _logreg
}  # fmt: skip
