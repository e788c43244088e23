"""Figures of a classifier on a split, with their uncertainty."""

import dataclasses
from collections import Counter

import numpy as np
from scipy.stats import binomtest

CONFUSIONS = 5  # pairs of classes that are named


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy on a split.

    Attributes:
        accuracy: share of the images that are right.
        interval: its 95 % interval (Wilson, 1927), the sampling of the images only.
        mean_per_class: mean over the classes of the accuracy within each; classes without images do not count.
        images: how many.
        loss: mean cross-entropy, nats.
        confusions: the most frequent ones, (class, predicted, images), the most frequent first.
    """

    accuracy: float
    interval: tuple[float, float]
    mean_per_class: float
    images: int
    loss: float
    confusions: list[tuple[int, int, int]]

    @classmethod
    def of(cls, predictions: np.ndarray, labels: np.ndarray, losses: np.ndarray) -> "Accuracy":
        """From class indices (n,), class indices (n,) and nats (n,)."""
        right = predictions == labels
        interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
        return cls(
            accuracy=float(right.mean()),
            interval=(float(interval.low), float(interval.high)),
            mean_per_class=float(np.mean([right[labels == label].mean() for label in np.unique(labels)])),
            images=len(right),
            loss=float(losses.mean(dtype=np.float64)),
            confusions=_confusions(predictions, labels),
        )


def _confusions(predictions: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, int]]:
    pairs = Counter(zip(labels.tolist(), predictions.tolist(), strict=True))
    wrong = [(label, predicted, count) for (label, predicted), count in pairs.items() if label != predicted]
    return sorted(wrong, key=lambda row: (-row[2], *row[:2]))[:CONFUSIONS]
