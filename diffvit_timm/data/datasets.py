"""Load image classification datasets, by Hub name or folder, with their official splits and class names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.exceptions import DatasetGenerationError

from ..errors import InputError
from .attributes import join_attributes
from .columns import check_group_column, find_image_column, find_label_column, select_columns
from .folders import load_image_folder
from .label_checks import (
    VAL_NAMES,
    check_rows,
    check_same_classes,
    check_training_classes,
    drop_unlabelled_test,
    validation_name,
)
from .labels import class_names
from .load_errors import load_errors
from .metadata import find_tables, load_labelled_folder
from .parquet import has_metadata, has_parquet_files, load_parquet_folder
from .splits import EvaluationSplit, Splits, hold_out
from .stream import Stream

__all__ = ["load_all_splits", "load_evaluation_split", "load_images", "load_splits"]

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
    multi_label: bool = False,
) -> Splits:
    """Load a dataset with its official splits.

    Without a validation split, a stratified share of the training images becomes one. Without a test split that has
    labels, the validation split is the test split, and that share is validation. If the training images are streamed,
    they cannot be counted: a share of the test split is then validation, and the rest is tested.

    Args:
        name: Hub name, or a folder with parquet files or with one folder of images per class (imagefolder).
        image_column: column of the images; 'auto' is the only image column.
        label_column: column of the class labels; 'auto' is label, fine_label, or the only one. With `multi_label`, it
            may also name columns of true and false, with commas between them; see `join_attributes`.
        stream: stream the training images, with this many images per epoch; 0: store them.
        test_share: share of the training images to test on, instead of the test split; 0: use the test split.
        group_column: column with group ids (e.g. patient); a group never spans two splits.
        dataset_config: configuration of a dataset that has several.
        val_share: share of the images that become validation images if there is no such split; 0: the validation
            images are the test images.
        multi_label: whether an image may have a list of labels.

    Raises:
        InputError: the dataset cannot be loaded, it has no usable split, column, label or class list, or no training
            images of a class.
    """
    loaded = load_all_splits(name, dataset_config, streaming=stream > 0)
    val_name = validation_name(loaded)
    if test_share:
        loaded.pop("test", None)
    if multi_label:
        loaded, label_column = join_attributes(name, loaded, label_column)
    _check_split_names(name, loaded, has_test=bool(test_share or "test" in loaded or val_name))
    features = loaded["train"].features
    label_column = find_label_column(name, features, label_column, multi_label)
    names = class_names(features[label_column])
    if not stream:
        drop_unlabelled_test(name, loaded, label_column)
    columns = {find_image_column(name, features, image_column): "image", label_column: "label"}
    if group_column:
        is_divided = not test_share and "test" in loaded and val_name is not None
        columns[check_group_column(name, features, group_column, columns, is_divided)] = "group"
    used = ("train", "test", val_name)
    named = {split: select_columns(data, columns) for split, data in loaded.items() if split in used}
    check_same_classes(name, label_column, named, dataset_config)
    if stream:
        named = {split: data if split == "train" else _store(data, split) for split, data in named.items()}
    for split, data in named.items():
        if not (stream and split == "train"):
            check_rows(name, split, data, group_column)
    if stream:
        splits = _divide_stream(named, name, val_name, stream, names, val_share)
    else:
        splits = _divide(named, name, val_name, test_share, group_column, names, val_share)
        check_training_classes(name, splits, group_column)
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
    drop_unlabelled_test(name, loaded, label_column)
    split = next((split for split in ("test", *VAL_NAMES, WHOLE) if split in loaded), None)
    if split is None:
        raise _no_test_split(name, loaded)
    features = loaded[split].features
    columns = {find_image_column(name, features, image_column): "image", label_column: "label"}
    images = select_columns(loaded[split], columns)
    check_same_classes(name, label_column, {split: images}, dataset_config)
    check_rows(name, split, images, None)
    return EvaluationSplit(images, "all" if split == WHOLE else split, class_names(features[label_column]))


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
    if may_be_images and (tables := find_tables(folder, f"`{parameter}={name}`", unsplit)):
        with load_errors(name, dataset_config, parameter):
            return load_labelled_folder(tables, streaming)
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


def _check_split_names(name: str, loaded: DatasetDict, has_test: bool) -> None:
    if "train" not in loaded:
        raise InputError(f"`dataset={name}` has no train split, only {', '.join(loaded)}: add one")
    if not has_test:
        raise _no_test_split(name, loaded)


def _no_test_split(name: str, loaded: DatasetDict) -> InputError:
    return InputError(
        f"`dataset={name}` has no test split, only {', '.join(loaded)}: add one, or set `test_share`, e.g. to 0.2"
    )


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


def _store(data: IterableDataset, split: str) -> Dataset:
    """Store a streamed split on disk, under its name, which a streamed folder of images does not know."""

    def rows() -> Iterator[dict]:
        yield from data

    try:
        return Dataset.from_generator(rows, features=data.features, split=datasets.NamedSplit(split))
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):  # of a check of the rows
            raise error.__cause__ from None
        raise
