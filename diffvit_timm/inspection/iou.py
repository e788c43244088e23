"""Intersection over union of segmentations, with intervals over the images."""

import dataclasses
from collections.abc import Iterable

import numpy as np

__all__ = ["Segmentations", "mean_iou", "paired_iou_difference"]

RESAMPLES = 2000  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Segmentations:
    """Counted pixels of each image and class.

    Attributes:
        intersection: pixels that are and are predicted as the class, (images, classes).
        predicted: pixels that are predicted as the class, (images, classes).
        true: pixels of the class, (images, classes). Pixels without a class count nowhere.
    """

    intersection: np.ndarray
    predicted: np.ndarray
    true: np.ndarray

    @classmethod
    def of(cls, pairs: Iterable[tuple[np.ndarray, np.ndarray]], classes: int, ignored: int) -> "Segmentations":
        """Count the pixels of pairs of a prediction and a mask of class indices, (H, W) each."""
        counts = []
        for predicted, true in pairs:
            counted = true != ignored
            predicted, true = predicted[counted].ravel(), true[counted].ravel()
            counts.append([np.bincount(x, minlength=classes) for x in (true[predicted == true], predicted, true)])
        return cls(*np.array(counts, np.int64).reshape(-1, 3, classes).transpose(1, 0, 2))

    @property
    def pixel_accuracy(self) -> float:
        """The share of all pixels that are right."""
        return float(self.intersection.sum() / self.true.sum())

    @property
    def per_class(self) -> np.ndarray:
        """Intersection over union of each class over all images, (classes,); NaN for a class that occurs nowhere."""
        return _ratio(self.intersection.sum(0), self.union.sum(0))

    @property
    def union(self) -> np.ndarray:
        """Pixels that are or are predicted as the class, (images, classes)."""
        return self.predicted + self.true - self.intersection


def mean_iou(counts: Segmentations) -> tuple[float, float, float]:
    """Return the mean intersection over union of the classes (Everingham et al. 2010), and its 95 % interval.

    The pixels of all images are added up before the ratio, as is usual. The interval is that of the bootstrap over the
    images. Classes that are in no mask and in no prediction do not count.
    """
    low, high = np.percentile(_resampled(counts, _weights(len(counts.true))), [2.5, 97.5])
    return float(np.nanmean(counts.per_class)), float(low), float(high)


def paired_iou_difference(counts: Segmentations, base: Segmentations) -> tuple[float, float, float]:
    """Return the mean IoU minus that of another network on the same images, and its 95 % interval.

    Both are resampled with the same images (paired bootstrap).
    """
    weights = _weights(len(counts.true))
    change = _resampled(counts, weights) - _resampled(base, weights)
    low, high = np.percentile(change, [2.5, 97.5])
    return mean_iou(counts)[0] - mean_iou(base)[0], float(low), float(high)


def _weights(images: int) -> np.ndarray:
    """Return how often each image occurs in each resample, (RESAMPLES, images)."""
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), RESAMPLES)


def _resampled(counts: Segmentations, weights: np.ndarray) -> np.ndarray:
    """Return the mean IoU of each resample, (RESAMPLES,)."""
    return np.nanmean(_ratio(weights @ counts.intersection, weights @ counts.union), axis=1)


def _ratio(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
