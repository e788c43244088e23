"""The labels of images: one class per image, or a list of any number of classes per image (multi-label)."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset

__all__ = [
    "class_label",
    "class_names",
    "is_multi_label",
    "label_targets",
    "multi_hot",
    "rarest_classes",
    "shown_classes",
    "target_of",
]


def class_label(feature: Any) -> "ClassLabel | None":
    """Return the classes of a column: of one label per row, or of a list of labels; None for any other column."""
    from datasets import ClassLabel, List  # not above: the core of the package works without datasets

    inner = feature.feature if isinstance(feature, List) else feature
    return inner if isinstance(inner, ClassLabel) else None


def class_names(feature: Any) -> list[str]:
    """Return the names of the classes of a column from `find_label_column`."""
    label = class_label(feature)
    return [] if label is None else label.names


def is_multi_label(features: Any) -> bool:
    """Return whether images may have any number of classes, from the features of a split with the column 'label'."""
    from datasets import List  # not above, as in `class_label`

    return isinstance(features["label"], List)


def multi_hot(labels: Sequence[int] | None, classes: int) -> Tensor:
    """Return a target of several classes: (classes,), 1 for each class of the image and 0 for the others.

    Args:
        labels: class indices of one image; empty for an image of no class.
        classes: number of classes.

    Raises:
        InputError: no list, or a label outside the classes.
    """
    if labels is None or None in labels:
        raise InputError("an image has no list of labels: give each image one, which may be empty")
    target = torch.zeros(classes)
    for label in labels:
        if not 0 <= label < classes:
            raise InputError(f"an image has the label {label}, but there are {classes} classes")
        target[label] = 1
    return target


def target_of(features: Any) -> Callable[[Any], Any]:
    """Return the function that turns the label of a row into its target: a class index, or as `multi_hot`.

    Args:
        features: features of a split with the column 'label'.
    """
    if not is_multi_label(features):
        return _identity
    return functools.partial(multi_hot, classes=len(class_names(features["label"])))


def _identity(label: int) -> int:
    return label


def label_targets(split: "Dataset") -> Tensor:
    """Return the target of every image of a stored split: class indices (n,), or (n, classes) for several labels."""
    labels = split["label"][:]
    if not is_multi_label(split.features):
        return torch.tensor(labels)
    target = target_of(split.features)
    return torch.stack([target(label) for label in labels])


def shown_classes(split: "Dataset") -> set[int]:
    """Return the classes that the images of a stored split have."""
    labels = split["label"][:]
    return set(itertools.chain(*labels) if is_multi_label(split.features) else labels)


def rarest_classes(split: "Dataset", least: int = 1) -> np.ndarray:
    """Return a class for every image of a stored multi-label split, to stratify the split by.

    Args:
        split: split of `Splits`, whose images have lists of labels.
        least: smallest number of images that share a returned class. Images of rarer classes get the most frequent of
            the returned classes.

    Returns:
        (n,), for each image the rarest of its classes; -1 for an image without any.
    """
    labels = split["label"][:]
    counts = np.bincount(np.concatenate([[], *labels]).astype(int), minlength=1)
    rarest = np.array([min(own, key=lambda label: (counts[label], label), default=-1) for own in labels])
    found, sizes = np.unique(rarest, return_counts=True)
    rarest[np.isin(rarest, found[sizes < least])] = found[sizes.argmax()]
    return rarest
