"""Classes with unequal numbers of training images: how unequal they are, and the weights that even them out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["class_weights", "imbalance", "positive_weights", "reports_balanced", "weighted_cross_entropy"]

MOST_WEIGHT = 100.0  # of a class, where an image may have several
IMBALANCED = 2.0  # from this ratio on, the balanced accuracy is reported, too


def imbalance(labels: Sequence[int]) -> float:
    """Return the number of images of the largest class over that of the smallest; classes without images do not count.

    Args:
        labels: class index of every training image.
    """
    counts = torch.bincount(torch.as_tensor(labels))
    return (counts.max() / counts[counts > 0].min()).item()


def reports_balanced(ratio: float | None, class_balance: str) -> bool:
    """Return whether a run reports its balanced accuracy: it evens the classes out, or they are of unequal size.

    Args:
        ratio: what `imbalance` returns; None for a stream, whose classes nobody has counted.
        class_balance: the option of this name.
    """
    return class_balance != "none" or (ratio or 1.0) >= IMBALANCED


def class_weights(labels: Sequence[int], class_count: int) -> Tensor:
    """Return a weight per class, inverse to its number of images, with the mean 1 over the images.

    Args:
        labels: class index of every training image.
        class_count: number of classes.

    Returns:
        (classes,), images / (classes with images * images of the class), as `class_weight="balanced"` in scikit-learn;
        0 for a class without images.
    """
    counts = torch.bincount(torch.as_tensor(labels), minlength=class_count)
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)


def positive_weights(targets: Tensor) -> Tensor:
    """Return the weight of the images that have a class, for the loss of several labels per image.

    Args:
        targets: (n, classes), 1 for each class of a training image, and 0 for the others.

    Returns:
        (classes,), images without the class / images with it, from 0.01 to 100; 1 for a class that no image has. It is
        the `pos_weight` of torch's binary_cross_entropy_with_logits.
    """
    count = targets.sum(0)
    weights = ((len(targets) - count) / count.clamp(min=1)).clamp(1 / MOST_WEIGHT, MOST_WEIGHT)
    return torch.where(count > 0, weights, 1.0)


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean of the images' cross-entropies, each times the weight of its class; a scalar, in nats.

    The `weight` of torch's cross_entropy also multiplies the smoothed part of the label, which would then mostly be
    that of rare classes. Here it multiplies the loss of an image with its smoothed label.

    Args:
        logits: (B, classes).
        targets: (B,), class indices; or (B, classes), as mixup makes them. The losses of mixed labels are mixed.
        weights: (classes,), from `class_weights`.
        smoothing: share of the target that is spread evenly over all classes.
    """
    shares = F.one_hot(targets, len(weights)) if targets.ndim == 1 else targets
    weighted = shares * weights  # (B, classes)
    mass = weighted.sum(1)  # (B,), weight of each image
    losses = F.cross_entropy(logits, weighted / mass[:, None], label_smoothing=smoothing, reduction="none")  # (B,)
    return (mass * losses).mean()
