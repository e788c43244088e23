"""Checks of the labels of a loaded dataset: every split has the same classes, and every image has a label."""

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict

from ..console import counted, log0
from ..errors import InputError
from .labels import class_names, is_multi_label, shown_classes
from .parquet import check_class_names
from .splits import Splits

__all__ = [
    "VAL_NAMES",
    "check_rows",
    "check_same_classes",
    "check_training_classes",
    "drop_unlabelled_test",
    "validation_name",
]

VAL_NAMES = ("validation", "valid", "val")
SHOWN = 5  # names of classes in a message


def validation_name(loaded: DatasetDict) -> str | None:
    """Return the name of the validation split; None without one."""
    return next((split for split in VAL_NAMES if split in loaded), None)


def drop_unlabelled_test(name: str, loaded: DatasetDict, label_column: str) -> None:
    """Remove a test split without any label, such as ImageNet's, if there is a validation split to test on."""
    val_name = validation_name(loaded)
    if val_name is None or "test" not in loaded or label_column not in loaded["test"].features:
        return
    labels = loaded["test"][label_column][:]
    if labels and all(label in (None, -1, []) for label in labels):
        log0(f"{name}: the images of test have no labels, so those of {val_name} are the test images")
        loaded.pop("test")


def check_same_classes(name: str, label_column: str, named: dict[str, Dataset], dataset_config: str | None) -> None:
    """Check that all splits, and all files of a parquet folder, number the same classes in the same order.

    Args:
        name: name or folder of the dataset.
        label_column: column of the labels in its files.
        named: the splits, with the columns of `Splits`.
        dataset_config: one of several configurations of the dataset.

    Raises:
        InputError: a split or a file with other classes.
    """
    first = "train" if "train" in named else next(iter(named))
    expected = class_names(named[first].features["label"])
    for split, data in named.items():
        if class_names(data.features["label"]) != expected:
            raise InputError(f"`dataset={name}`: the class names of {split} differ from those of {first}")
    folder = Path(name).expanduser()
    if folder.is_dir() and named[first].info.builder_name == "parquet":
        check_class_names(folder, label_column, expected, dataset_config, first)


def check_rows(name: str, split: str, data: Dataset, group_column: str | None) -> None:
    """Check that a stored split has images, and that every image has a label and, in train, a group.

    Args:
        name: name or folder of the dataset.
        split: name of the split.
        data: its images. An image with a list of labels may have an empty one.
        group_column: the user's name of the column 'group'; None without groups.

    Raises:
        InputError: no images, no labels, or an image without a label or group, or with a label outside the classes.
    """
    if not len(data):
        raise InputError(f"`dataset={name}`: {split} has no images")
    classes = len(class_names(data.features["label"]))
    for row, label in _labels(data):
        if label is None or label < 0:
            advice = ": use another dataset, or test on training images with `test_share=0.25`"
            raise InputError(
                f"`dataset={name}`: {split} has images without a label (the first is row {row})"
                f"{advice if split == 'test' else ''}"
            )
        if label >= classes:
            raise InputError(
                f"`dataset={name}`: row {row} of {split} has the label {label}, but there are {classes} classes"
            )
    if is_multi_label(data.features) and not any(data["label"][:]):
        raise InputError(f"`dataset={name}`: no image of {split} has a label: check the label column")
    if group_column and split == "train" and None in data["group"]:
        raise InputError(f"`group_column={group_column}`: some training images have no group: give each image one")


def _labels(data: Dataset) -> Iterator[tuple[int, int | None]]:
    """Yield every label of a split with its row; None for a label, or a list of labels, that is missing."""
    several = is_multi_label(data.features)
    for row, label in enumerate(data["label"][:]):
        yield from ((row, one) for one in (label if several and label is not None else [label]))


def check_training_classes(name: str, splits: Splits, group_column: str | None) -> None:
    """Check that every class of the validation and test images also has training images.

    With several labels per image, such classes are only reported: a random split of a dataset with rare classes can
    hardly avoid them. But validation and test images without any class are refused.

    Args:
        name, group_column: as in `check_rows`.
        splits: stored splits.

    Raises:
        InputError: a class without training images, or a split without any class.
    """
    shown = {"val": shown_classes(splits.val), "test": shown_classes(splits.test)}
    for role, classes in shown.items():
        if not classes:
            raise InputError(
                f"`dataset={name}`: no {role} image has a class, so nothing can be measured: hold out more images, or "
                "add splits of your own"
            )
    missing_labels = (shown["val"] | shown["test"]) - shown_classes(splits.train)
    missing = [splits.class_names[label] for label in sorted(missing_labels)]
    if missing and splits.is_multi_label:
        more, verb = ", ..." if len(missing) > SHOWN else "", "has" if len(missing) == 1 else "have"
        log0(
            f"warning: {counted(len(missing), 'class')} of the validation or test images {verb} no training images: "
            f"{', '.join(missing[:SHOWN])}{more}"
        )
    elif missing:
        reason = f": `group_column={group_column}` has too few groups of it" if group_column else ""
        raise InputError(
            f"`dataset={name}` has no training images of the class {missing[0]}, which has validation or test images"
            f"{reason}"
        )
