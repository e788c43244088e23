"""The accuracy of a classifier on a split, with its uncertainty."""

import dataclasses
from collections import Counter

import numpy as np
from scipy.stats import binomtest, bootstrap

from .calibration import calibration_error

__all__ = ["Accuracy", "bootstrap_interval", "mean_per_class", "paired_differences", "wilson_interval"]

CONFUSIONS = 5  # number of confused pairs of classes to report
RESAMPLES = 2000  # of the bootstrap


def wilson_interval(right: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy (Wilson, 1927) from whether each image is right, (n,)."""
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of the mean of each column, (images, k) -> (k,) and (k,), by resampling the images.

    For differences of two networks on the same images, this is the paired bootstrap (Efron and Tibshirani 1993).
    """
    result = bootstrap(
        (values,), np.mean, axis=0, n_resamples=RESAMPLES, batch=10, method="percentile", vectorized=True,
        random_state=np.random.default_rng(0)
    )  # fmt: skip
    return result.confidence_interval


def paired_differences(scores: np.ndarray, base: np.ndarray | None) -> list[dict[str, float | None]]:
    """Return the difference of each column to that of the base with its interval, paired by image.

    Args:
        scores: scores of a network, (images, k).
        base: those of the network to compare with; None for that network itself, whose differences are None.

    Returns:
        For each column `difference`, `difference_low` and `difference_high`.
    """
    keys = ("difference", "difference_low", "difference_high")
    if base is None:
        return [dict.fromkeys(keys)] * scores.shape[1]
    change = scores - base
    columns = (change.mean(axis=0), *bootstrap_interval(change))
    return [dict(zip(keys, map(float, values), strict=True)) for values in zip(*columns, strict=True)]


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Accuracy on a split.

    Attributes:
        accuracy: top-1 accuracy, the share of images that are classified correctly.
        interval: 95 % interval of the accuracy (Wilson, 1927), for the sampling of the images only.
        mean_per_class: mean of the accuracies of the classes; classes without images do not count.
        images: number of images.
        loss: mean cross-entropy, nats.
        calibration_error: expected calibration error of `calibration_error`, in [0, 1]; None without confidences.
        confusions: most frequent confusions first, as (class, predicted class, number of images).
        is_right: whether each image is classified correctly, (n,).
    """

    accuracy: float
    interval: tuple[float, float]
    mean_per_class: float
    images: int
    loss: float
    calibration_error: float | None
    confusions: list[tuple[int, int, int]]
    is_right: np.ndarray = dataclasses.field(repr=False, compare=False)  # arrays have no single truth value

    @classmethod
    def of(
        cls, predictions: np.ndarray, labels: np.ndarray, losses: np.ndarray, confidences: np.ndarray | None = None
    ) -> "Accuracy":
        """Compute the accuracy from one value per image.

        Args:
            predictions: predicted classes, (n,).
            labels: true classes, (n,).
            losses: cross-entropies in nats, (n,).
            confidences: probabilities of the predicted classes, (n,), in [0, 1].
        """
        right = predictions == labels
        return cls(
            accuracy=float(right.mean()),
            interval=wilson_interval(right),
            mean_per_class=mean_per_class(right, labels),
            images=len(right),
            loss=float(losses.mean(dtype=np.float64)),
            calibration_error=None if confidences is None else calibration_error(confidences, right),
            confusions=_confusions(predictions, labels),
            is_right=right,
        )


def mean_per_class(right: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the accuracies of the classes, from whether each image is right, (n,), and its class, (n,)."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _confusions(predictions: np.ndarray, labels: np.ndarray) -> list[tuple[int, int, int]]:
    pairs = Counter(zip(labels.tolist(), predictions.tolist(), strict=True))
    wrong = [(label, predicted, count) for (label, predicted), count in pairs.items() if label != predicted]
    return sorted(wrong, key=lambda row: (-row[2], *row[:2]))[:CONFUSIONS]
