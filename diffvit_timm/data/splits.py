"""The three splits of a dataset, and how one split is divided into two."""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from ..errors import InputError
from .fingerprint import fingerprint
from .labels import is_multi_label, rarest_classes

__all__ = [
    "SPLIT_SEED",
    "EvaluationSplit",
    "Splits",
    "hold_out",
    "require_every_class",
    "take_per_class",
    "take_stratified",
]

SPLIT_SEED = 0  # every training seed has the same validation split
MAX_FOLDS = 20  # groups are dealt into at most this many folds, some of which are held out


@dataclasses.dataclass(frozen=True)
class Splits:
    """The three splits of a dataset, with the columns 'image' (undecoded bytes or path) and 'label'.

    A label is a class index, or a list of them if images may have any number of classes.

    Attributes:
        train: stored images, or a `Stream`.
        val, test: stored images.
        class_names: names of the classes, in the order of the labels.
    """

    train: Any
    val: Dataset
    test: Dataset
    class_names: list[str]

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have any number of classes: its 'label' is a list of class indices."""
        return is_multi_label(self.test.features)

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each split, by which a run recognises its data."""
        return {role: fingerprint(getattr(self, role)) for role in ("train", "val", "test")}


def require_every_class(splits: Splits, given: str) -> None:
    """Check that every class has training images.

    Args:
        splits: stored splits.
        given: what needs them, for the error.

    Raises:
        InputError: a class has none.
    """
    missing = sorted(set(range(len(splits.class_names))) - set(splits.train["label"][:]))
    if missing:
        names = ", ".join(splits.class_names[label] for label in missing)
        raise InputError(f"{given} needs training images of every class, but {names} has none")


@dataclasses.dataclass(frozen=True)
class EvaluationSplit:
    """The images on which finished networks are compared.

    Attributes:
        images: stored images, with the columns of `Splits`.
        name: name of their split in the dataset; 'all' for the images of a folder without splits.
        class_names: names of the classes, in the order of the labels.
    """

    images: Dataset
    name: str
    class_names: list[str]


def hold_out(data: Dataset, share: float, name: str) -> tuple[Dataset, Dataset]:
    """Divide a split in two, with the same class proportions in both parts as far as whole groups allow.

    An image with several labels counts as one of its rarest class.

    Args:
        data: split with the column 'label'; rows with the same value in a column 'group' stay together.
        share: share of the images to hold out, in (0, 1).
        name: name of the dataset, for the error.

    Returns:
        The remaining images, and the held-out images.

    Raises:
        InputError: too few images or groups.
    """
    try:
        if "group" in data.column_names:
            held = _choose_groups(data, share)
            return data.select(np.setdiff1d(np.arange(len(data)), held)), data.select(np.sort(held))
        parts = _divide_evenly(data, share)
    except ValueError as error:
        raise InputError(
            f"`dataset={name}` is too small to hold out {share:.0%} of the images of every class: add images, or "
            f"validation and test splits ({error})"
        ) from error
    return parts["train"], parts["test"]


def _divide_evenly(data: Dataset, share: float) -> DatasetDict:
    """Divide a split into the parts 'train' and 'test', stratified by the labels."""
    if not is_multi_label(data.features):
        return data.train_test_split(test_size=share, stratify_by_column="label", seed=SPLIT_SEED)
    found, strata = np.unique(rarest_classes(data, least=math.ceil(1 / share)), return_inverse=True)
    # `datasets` stratifies by a column of class labels only.
    data = data.add_column("stratum", strata.tolist(), feature=ClassLabel(num_classes=len(found)))
    parts = data.train_test_split(test_size=share, stratify_by_column="stratum", seed=SPLIT_SEED)
    return parts.remove_columns("stratum")


def _strata(data: Dataset, least: int = 1) -> np.ndarray:
    """Return the class of each row, (n,), or the rarest of its classes; `least` as in `rarest_classes`."""
    return rarest_classes(data, least) if is_multi_label(data.features) else np.array(data["label"][:])


def take_per_class(data: Dataset, count: int, seed: int = SPLIT_SEED) -> Dataset:
    """Draw rows of every class at random.

    Args:
        data: split with the column 'label'.
        count: number of rows per class; a class with fewer rows keeps all of them.
        seed: seed of the draw.

    Returns:
        The drawn rows, in a random order.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    labels = np.array(data["label"][:])[order]
    rows = np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)])
    return data.select(order[np.sort(rows)])


def take_stratified(data: Dataset, count: int, seed: int = SPLIT_SEED) -> Dataset:
    """Draw rows at random, with the class proportions of the split.

    Every class keeps at least one row. If `count` is smaller than the number of classes, the largest classes keep one
    row each. An image with several labels counts as one of its rarest class.

    Args:
        data: split with the column 'label'.
        count: number of rows to draw, at most those of the split.
        seed: seed of the draw.

    Returns:
        The drawn rows, in their order.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data))
    labels = _strata(data)[order]
    classes, sizes = np.unique(labels, return_counts=True)
    kept = _proportional(sizes, count, rng)
    rows = np.concatenate([np.flatnonzero(labels == name)[:number] for name, number in zip(classes, kept, strict=True)])
    return data.select(order[np.sort(rows)])


def _proportional(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Divide `count` among classes of these sizes in proportion; equal remainders are decided at random."""
    ideal = count * sizes / sizes.sum()
    for_all = count >= len(sizes)
    kept = np.maximum(np.floor(ideal).astype(int), 1) if for_all else np.zeros(len(sizes), int)
    ideal = ideal + 1e-9 * rng.random(len(sizes))
    while kept.sum() < count:
        kept[np.argmax(np.where(kept < (sizes if for_all else 1), ideal - kept, -np.inf))] += 1
    while kept.sum() > count:
        kept[np.argmax(np.where(kept > 1, kept - ideal, -np.inf))] -= 1
    return kept


def _choose_groups(data: Dataset, share: float) -> np.ndarray:
    """Choose whole groups with about `share` of the images; returns their row indices."""
    from sklearn.model_selection import StratifiedGroupKFold

    max_folds = min(len(set(data["group"])), MAX_FOLDS)
    fraction = Fraction(share).limit_denominator(max_folds)
    fold_count = fraction.denominator if 0 < fraction < 1 else max_folds
    splitter = StratifiedGroupKFold(fold_count, shuffle=True, random_state=SPLIT_SEED)
    folds = [fold for _, fold in splitter.split(np.zeros(len(data)), _strata(data, fold_count), data["group"][:])]
    return np.concatenate(_closest_folds(folds, share * len(data)))


def _closest_folds(folds: list[np.ndarray], target: float) -> list[np.ndarray]:
    """Choose folds whose sizes add up to nearly `target` images; at least the smallest fold."""
    folds, chosen, count = sorted(folds, key=len, reverse=True), [], 0
    for fold in folds:
        if abs(count + len(fold) - target) < abs(count - target):
            chosen.append(fold)
            count += len(fold)
    return chosen or folds[-1:]
