"""Load image classification datasets, by Hub name or folder, with their official splits and class names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ..console import log0
from ..errors import InputError
from .columns import check_group_column, find_image_column, find_label_column, select_columns
from .folders import load_image_folder
from .load_errors import load_errors
from .parquet import check_class_names, has_metadata, has_parquet_files, load_parquet_folder
from .splits import EvaluationSplit, Splits, hold_out
from .stream import Stream

__all__ = ["load_all_splits", "load_evaluation_split", "load_images", "load_splits"]

VAL_NAMES = ("validation", "valid", "val")
WHOLE = "whole"  # split of a folder without splits, if only images to test on are needed; `datasets` reserves "all"
SHARDS = 64  # of a streamed folder of images


def load_splits(
    name: str,
    image_column: str = "auto",
    label_column: str = "auto",
    stream: int = 0,
    test_share: float = 0.0,
    group_column: str | None = None,
    dataset_config: str | None = None,
    val_share: float = 0.1,
) -> Splits:
    """Load a dataset with its official splits.

    Without a validation split, a stratified share of the training images becomes one. Without a test split that has
    labels, the validation split is the test split, and that share is validation. If the training images are streamed,
    they cannot be counted: a share of the test split is then validation, and the rest is tested.

    Args:
        name: Hub name, or a folder with parquet files or with one folder of images per class (imagefolder).
        image_column: column of the images; 'auto' is the only image column.
        label_column: column of the class labels; 'auto' is label, fine_label, or the only one.
        stream: stream the training images, with this many images per epoch; 0: store them.
        test_share: share of the training images to test on, instead of the test split; 0: use the test split.
        group_column: column with group ids (e.g. patient); a group never spans two splits.
        dataset_config: configuration of a dataset that has several.
        val_share: share of the images that become validation images if there is no such split; 0: the validation
            images are the test images.

    Raises:
        InputError: the dataset cannot be loaded, it has no usable split, column, label or class list, or no training
            images of a class.
    """
    loaded = load_all_splits(name, dataset_config, streaming=stream > 0)
    val_name = _validation_name(loaded)
    if test_share:
        loaded.pop("test", None)
    _check_split_names(name, loaded, has_test=bool(test_share or "test" in loaded or val_name))
    features = loaded["train"].features
    label_column = find_label_column(name, features, label_column)
    if not stream:
        _drop_unlabelled_test(name, loaded, label_column)
    columns = {find_image_column(name, features, image_column): "image", label_column: "label"}
    if group_column:
        is_divided = not test_share and "test" in loaded and val_name is not None
        columns[check_group_column(name, features, group_column, columns, is_divided)] = "group"
    used = ("train", "test", val_name)
    named = {split: select_columns(data, columns) for split, data in loaded.items() if split in used}
    _check_class_names(name, label_column, named, dataset_config)
    if stream:
        named = {split: data if split == "train" else _store(data, split) for split, data in named.items()}
    for split, data in named.items():
        if not (stream and split == "train"):
            _check_rows(name, split, data, group_column)
    if stream:
        splits = _divide_stream(named, name, val_name, stream, features[label_column].names, val_share)
    else:
        splits = _divide(named, name, val_name, test_share, group_column, features[label_column].names, val_share)
        _check_training_classes(name, splits, group_column)
    return splits


def load_evaluation_split(
    name: str, image_column: str = "auto", label_column: str = "auto", dataset_config: str | None = None
) -> EvaluationSplit:
    """Load only the images to test on: those that `load_splits` would test on, also if there are no training images.

    This is the test split, or else the validation split, or else all images of a folder without splits.

    Args:
        name, image_column, label_column, dataset_config: as in `load_splits`.

    Raises:
        InputError: the dataset cannot be loaded, has only a training split, or has no usable column, label or class
            list.
    """
    loaded = load_all_splits(name, dataset_config, unsplit=WHOLE)
    label_column = find_label_column(name, next(iter(loaded.values())).features, label_column)
    _drop_unlabelled_test(name, loaded, label_column)
    split = next((split for split in ("test", *VAL_NAMES, WHOLE) if split in loaded), None)
    if split is None:
        raise _no_test_split(name, loaded)
    features = loaded[split].features
    columns = {find_image_column(name, features, image_column): "image", label_column: "label"}
    images = select_columns(loaded[split], columns)
    _check_class_names(name, label_column, {split: images}, dataset_config)
    _check_rows(name, split, images, None)
    return EvaluationSplit(images, "all" if split == WHOLE else split, features[label_column].names)


def load_images(
    name: str, image_column: str = "auto", parameter: str = "images", dataset_config: str | None = None
) -> Dataset:
    """Load images without their labels: the training split of a dataset, or its only split.

    Args:
        name: Hub name, or a folder of images, of parquet files or of one folder of images per class.
        image_column: column of the images; 'auto' is the only image column.
        parameter: what the caller calls the parameter `name`.
        dataset_config: configuration of a dataset that has several.

    Returns:
        Columns as in `Splits`; all labels are -1.

    Raises:
        InputError: the dataset cannot be loaded, or has no images.
    """
    loaded = load_all_splits(name, dataset_config, parameter)
    split = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    column = find_image_column(name, split.features, image_column, parameter)
    images = select_columns(split, {column: "image"})
    if not len(images):
        raise InputError(f"`{parameter}={name}` has no images")
    return images.add_column("label", [-1] * len(images))


def load_all_splits(
    name: str,
    dataset_config: str | None,
    parameter: str = "dataset",
    streaming: bool = False,
    unsplit: str = "train",
) -> DatasetDict:
    """Load all splits. Those of a folder without splits are one, which is called `unsplit`."""
    folder = Path(name).expanduser()
    looks_local = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not folder.is_dir():
        raise InputError(
            f"`{parameter}={name}` is not a folder: check the path, or give the name of a dataset on the Hub"
        )
    if dataset_config and folder.is_dir() and not has_metadata(folder):
        raise InputError(
            f"`dataset_config={dataset_config}` has no effect: {name} has no README.md with configurations; leave the "
            "option out"
        )
    has_parquet = folder.is_dir() and has_parquet_files(folder)
    may_be_images = folder.is_dir() and not (has_parquet or dataset_config)
    if may_be_images and (stored := load_image_folder(folder, parameter, unsplit)):
        if not streaming:
            return stored
        # The workers of a loader share the shards.
        shards = {split: data.to_iterable_dataset(min(SHARDS, len(data))) for split, data in stored.items()}
        return IterableDatasetDict(shards)
    with load_errors(name, dataset_config, parameter):
        if has_parquet:
            return load_parquet_folder(folder, parameter, streaming, dataset_config, unsplit)
        return datasets.load_dataset(str(folder) if folder.is_dir() else name, dataset_config, streaming=streaming)


def _validation_name(loaded: DatasetDict) -> str | None:
    return next((split for split in VAL_NAMES if split in loaded), None)


def _drop_unlabelled_test(name: str, loaded: DatasetDict, label_column: str) -> None:
    """Remove a test split without any label, such as ImageNet's, if there is a validation split to test on."""
    val_name = _validation_name(loaded)
    if val_name is None or "test" not in loaded or label_column not in loaded["test"].features:
        return
    labels = loaded["test"][label_column][:]
    if labels and all(label is None or label == -1 for label in labels):
        log0(f"{name}: the images of test have no labels, so those of {val_name} are the test images")
        loaded.pop("test")


def _check_split_names(name: str, loaded: DatasetDict, has_test: bool) -> None:
    if "train" not in loaded:
        raise InputError(f"`dataset={name}` has no train split, only {', '.join(loaded)}: add one")
    if not has_test:
        raise _no_test_split(name, loaded)


def _no_test_split(name: str, loaded: DatasetDict) -> InputError:
    return InputError(
        f"`dataset={name}` has no test split, only {', '.join(loaded)}: add one, or set `test_share`, e.g. to 0.2"
    )


def _check_class_names(name: str, label_column: str, named: dict[str, Dataset], dataset_config: str | None) -> None:
    """Check that all splits, and all files of a parquet folder, number the same classes in the same order."""
    first = "train" if "train" in named else next(iter(named))
    expected = named[first].features["label"].names
    for split, data in named.items():
        if data.features["label"].names != expected:
            raise InputError(f"`dataset={name}`: the class names of {split} differ from those of {first}")
    folder = Path(name).expanduser()
    if folder.is_dir() and named[first].info.builder_name == "parquet":
        check_class_names(folder, label_column, expected, dataset_config, first)


def _check_rows(name: str, split: str, data: Dataset, group_column: str | None) -> None:
    """Check that a stored split has images, and that every image has a label and, in train, a group."""
    if not len(data):
        raise InputError(f"`dataset={name}`: {split} has no images")
    classes = data.features["label"].num_classes
    for row, label in enumerate(data["label"][:]):
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
    if group_column and split == "train" and None in data["group"]:
        raise InputError(f"`group_column={group_column}`: some training images have no group: give each image one")


def _divide(
    named: dict[str, Dataset],
    name: str,
    val_name: str | None,
    test_share: float,
    group_column: str | None,
    class_names: list[str],
    val_share: float,
) -> Splits:
    """Choose the three splits of stored images, and hold out those that the dataset does not have."""
    train: Any = named["train"]
    if test_share:
        image_count = len(train)
        train, test = hold_out(train, test_share, name)
        if group_column and abs(len(test) / image_count - test_share) > test_share / 2:
            raise InputError(
                f"`test_share={test_share}`: the groups of `group_column={group_column}` are too large for it and "
                f"would hold out {len(test) / image_count:.0%} of the images: choose a share near that"
            )
    else:
        test = named["test"] if "test" in named else named[val_name]  # type: ignore[index]
    if val_name is not None and (test_share or "test" in named):
        val = named[val_name]
    elif val_share:
        train, val = hold_out(train, val_share, name)
    else:
        val = test
    if group_column:
        train, val, test = (split.select_columns(["image", "label"]) for split in (train, val, test))
    return Splits(train, val, test, class_names)


def _divide_stream(
    named: dict[str, Any], name: str, val_name: str | None, length: int, class_names: list[str], val_share: float
) -> Splits:
    """Choose the three splits of a dataset whose training images are streamed."""
    test = named["test"] if "test" in named else named[val_name]  # type: ignore[index]
    if val_name is not None and "test" in named:
        val = named[val_name]
    elif val_share:
        test, val = hold_out(test, val_share, name)
    else:
        val = test
    return Splits(Stream(named["train"], length), val, test, class_names)


def _check_training_classes(name: str, splits: Splits, group_column: str | None) -> None:
    """Check that every class of the validation and test images also has training images."""
    missing = sorted({*splits.val["label"][:], *splits.test["label"][:]} - {*splits.train["label"][:]})
    if missing:
        reason = f": `group_column={group_column}` has too few groups of it" if group_column else ""
        raise InputError(
            f"`dataset={name}` has no training images of the class {splits.class_names[missing[0]]}, "
            f"which has validation or test images{reason}"
        )


def _store(data: IterableDataset, split: str) -> Dataset:
    """Store a streamed split on disk, under its name, which a streamed folder of images does not know."""

    def rows() -> Iterator[dict]:
        yield from data

    return Dataset.from_generator(rows, features=data.features, split=datasets.NamedSplit(split))
