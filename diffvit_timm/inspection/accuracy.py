"""The accuracy of a classifier on a split, with its uncertainty."""

import dataclasses
from collections import Counter

import numpy as np
from scipy.stats import binomtest

CONFUSIONS = 5  # number of confused pairs of classes to report


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Accuracy on a split.

    Attributes:
        accuracy: top-1 accuracy, the share of images that are classified correctly.
        interval: 95 % interval of the accuracy (Wilson, 1927), for the sampling of the images only.
        mean_per_class: mean of the accuracies of the classes; classes without images do not count.
        images: number of images.
        loss: mean cross-entropy, nats.
        confusions: most frequent confusions first, as (class, predicted class, number of images).
        is_right: whether each image is classified correctly, (n,).
    """

    accuracy: float
    interval: tuple[float, float]
    mean_per_class: float
    images: int
    loss: float
    confusions: list[tuple[int, int, int]]
    is_right: np.ndarray = dataclasses.field(repr=False, compare=False)  # arrays have no single truth value

    @classmethod
    def of(cls, predictions: np.ndarray, labels: np.ndarray, losses: np.ndarray) -> "Accuracy":
        """Compute the accuracy from predicted classes (n,), true classes (n,) and losses in nats (n,)."""
        right = predictions == labels
        interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
        return cls(
            accuracy=float(right.mean()),
            interval=(float(interval.low), float(interval.high)),
            mean_per_class=float(np.mean([right[labels == label].mean() for label in np.unique(labels)])),
            images=len(right),
            loss=float(losses.mean(dtype=np.float64)),
            confusions=_confusions(predictions, labels),
            is_right=right,
        )


def _confusions(predictions: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, int]]:
    pairs = Counter(zip(labels.tolist(), predictions.tolist(), strict=True))
    wrong = [(label, predicted, count) for (label, predicted), count in pairs.items() if label != predicted]
    return sorted(wrong, key=lambda row: (-row[2], *row[:2]))[:CONFUSIONS]
