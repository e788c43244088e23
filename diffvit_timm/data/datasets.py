"""Image classification datasets by Hub name or folder: their official splits and class names."""

import dataclasses
import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset
from datasets import Image as ImageFeature
from PIL import Image

from ..errors import InputError
from .stream import Stream

MOST_FOLDS = 20  # that groups are dealt into, to hold out some of them
SPLIT_SEED = 0  # the validation split is the same for every seed of a training

VAL_NAMES = ("validation", "valid", "val")


@dataclasses.dataclass(frozen=True)
class Splits:
    """The three splits of a dataset; columns are 'image' (undecoded bytes or path) and 'label' (class index)."""

    train: Any  # Dataset, or a Stream
    val: Dataset
    test: Dataset
    class_names: list[str]


def _load(name: str, option: str = "--dataset", streaming: bool = False) -> DatasetDict:
    folder = Path(name).expanduser()
    looks_local = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not folder.is_dir():
        raise InputError(f"{option} {name} is not a folder: check the path, or give a dataset's name on the Hub")
    try:
        return datasets.load_dataset(str(folder) if folder.is_dir() else name, streaming=streaming)
    except (OSError, datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        if folder.is_dir():
            raise InputError(f"{option} {name} holds neither parquet files nor class folders: {error}") from error
        raise InputError(
            f"{option} {name} is no folder here and cannot be had from the Hub ({type(error).__name__}): "
            "check the name and the network, or pass the path of a folder"
        ) from error


def load_splits(
    name: str,
    image_column: str = "auto",
    label_column: str = "label",
    stream: int = 0,
    test_share: float = 0.0,
    group_column: str | None = None,
) -> Splits:
    """Load a dataset with its official splits; without a validation split, a stratified tenth of train becomes one.

    Without a test split the validation split is the test, and validation is that tenth. Of a stream, whose training
    images cannot be counted, it is a tenth of the test split, and the rest is tested.

    Args:
        name: a Hub name, or a folder of parquet files or of one folder a class (imagefolder).
        image_column: 'auto' is the only image column.
        label_column: the column of class labels.
        stream: read the training images as they come, so many an epoch; 0: store them.
        test_share: test on this share of the training images, in the place of the dataset's test split; 0: on that.
        group_column: of what no two splits may share, such as patients, where train is divided.

    Raises:
        InputError: the dataset cannot be had, or lacks a column, a class list or a split; train lacks a class.
    """
    loaded = _load(name, streaming=stream > 0)
    if "train" not in loaded:
        raise InputError(f"--dataset {name} has no train split, only {', '.join(loaded)}")
    features = loaded["train"].features
    image_column = _image_column(name, features, image_column)
    if not isinstance(features.get(label_column), ClassLabel):
        labels = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
        advice = f"choose one of {labels}" if labels else "there is none; datasets' class_encode_column makes one"
        raise InputError(f"--label-column {label_column} is no class label of {name}: {advice}")
    if features[label_column].num_classes < 2:
        raise InputError(f"--dataset {name} has one class, and nothing to tell it from: give two or more")

    val_name = next((split for split in VAL_NAMES if split in loaded), None)
    if test_share:
        loaded.pop("test", None)
    elif "test" not in loaded and val_name is None:
        raise InputError(
            f"--dataset {name} has no test split, only {', '.join(loaded)}: add one, or train with --test-share"
        )
    columns = {image_column: "image", label_column: "label"}
    if group_column:
        if group_column not in features:
            raise InputError(f"--group-column {group_column} is no column of {name}: choose one of {list(features)}")
        if not test_share and "test" in loaded and val_name is not None:
            raise InputError(f"--group-column {group_column} has no effect: {name} comes divided, and stays so")
        if group_column in columns:
            raise InputError(f"--group-column {group_column} is that of the {columns[group_column]}s: choose another")
        columns[group_column] = "group"
    used = ("train", "test", val_name)
    named = {split: _named_columns(data, columns) for split, data in loaded.items() if split in used}
    for split, names in _class_names(name, label_column, named).items():
        if names != features[label_column].names:
            raise InputError(f"--dataset {name}: the class names of {split} are not those of train")
    train: Any = named["train"]
    if stream:
        train = Stream(named.pop("train"), stream)
        named = {split: _stored(data) for split, data in named.items()}
    for split, data in named.items():
        if not len(data):
            raise InputError(f"--dataset {name}: {split} has no images")
        if any(label is None or label < 0 for label in data["label"]):
            advice = ": give another, or train with --test-share 0.25" if split == "test" else ""
            raise InputError(f"--dataset {name}: {split} has images without a label{advice}")

    if group_column and None in train["group"]:
        raise InputError(f"--group-column {group_column}: train has images without a value of it: give each one")
    if test_share:
        images = len(train)
        train, test = _held_out(train, test_share, name)
        if group_column and abs(len(test) / images - test_share) > test_share / 2:
            raise InputError(
                f"--test-share {test_share}: the groups of --group-column {group_column} are too large for it, and "
                f"would hold out {len(test) / images:.0%}: ask for a share near to that"
            )
    else:
        test = named["test"] if "test" in named else named[val_name]
    if val_name is not None and (test_share or "test" in named):
        val = named[val_name]
    elif stream:
        test, val = _held_out(test, 0.1, name)
    else:
        train, val = _held_out(train, 0.1, name)
    if not stream:
        lacking = sorted({*val["label"], *test["label"]} - {*train["label"]})
        if lacking:
            raise InputError(
                f"--dataset {name}: train has no images of {features[label_column].int2str(lacking[0])}, which are "
                f"validated or tested{': --group-column has too few groups of it' if group_column else ''}"
            )
    if group_column:
        train, val, test = (split.select_columns(["image", "label"]) for split in (train, val, test))
    return Splits(train, val, test, features[label_column].names)


def _stored(data: IterableDataset) -> Dataset:
    """A split of a stream, on the disk."""

    def rows() -> Iterator[dict]:
        yield from data

    return Dataset.from_generator(rows, features=data.features, split=data.split)


def _image_column(name: str, features: Features, column: str, option: str = "--dataset") -> str:
    images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if column == "auto":
        if len(images) != 1:
            raise InputError(
                f"{option} {name} has {len(images)} image columns ({images}): keep one, or pass --image-column"
            )
        return images[0]
    if column not in images:
        raise InputError(f"--image-column {column} is no image column of {name}: choose one of {images}")
    return column


def _named_columns(data: Dataset, columns: dict[str, str]) -> Dataset:
    """Only these columns, under the names they map to; images stay undecoded."""
    data = data.select_columns(list(columns)).rename_columns({k: v for k, v in columns.items() if k != v})
    return data.cast_column("image", ImageFeature(decode=False))


def load_images(name: str, image_column: str = "auto", option: str = "--images") -> Dataset:
    """Images without their labels: the train split of a dataset, or its only one.

    Args:
        name: a Hub name, or a folder of images, of parquet files or of one folder a class.
        image_column: 'auto' is the only image column.
        option: what the user calls `name`.

    Returns:
        Columns as in `Splits`; the label is -1.

    Raises:
        InputError: the dataset cannot be had, or has no images.
    """
    loaded = _load(name, option)
    split = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    column = _image_column(name, split.features, image_column, option)
    images = _named_columns(split, {column: "image"})
    if not len(images):
        raise InputError(f"{option} {name} has no images")
    return images.add_column("label", [-1] * len(images))


def _class_names(name: str, label_column: str, splits: dict[str, Dataset]) -> dict[str, list[str]]:
    """Class names of each split: `datasets` gives all splits of a parquet folder those of its first file."""
    names = {split: data.features["label"].names for split, data in splits.items()}
    if Path(name).expanduser().is_dir():
        files = datasets.load_dataset_builder(str(Path(name).expanduser())).config.data_files or {}
        for split in splits:
            for path in (path for path in files.get(split, ()) if path.endswith(".parquet")):
                labels = Features.from_arrow_schema(pq.read_schema(path))[label_column]
                if isinstance(labels, ClassLabel):  # or numbers, -1 where there is no label
                    names[split] = labels.names
    return names


def _held_out(data: Dataset, share: float, name: str) -> tuple[Dataset, Dataset]:
    """The rest, and a share of it: with all classes in the same proportions, as nearly as whole groups allow."""
    try:
        if "group" in data.column_names:
            from sklearn.model_selection import StratifiedGroupKFold

            most = min(len(set(data["group"])), MOST_FOLDS)
            folds = Fraction(share).limit_denominator(most)
            number = folds.denominator if 0 < folds < 1 else most
            dealer = StratifiedGroupKFold(number, shuffle=True, random_state=SPLIT_SEED)
            parts = [part for _, part in dealer.split(np.zeros(len(data)), data["label"], data["group"])]
            held = np.concatenate(_nearest(parts, share * len(data)))
            return data.select(np.setdiff1d(np.arange(len(data)), held)), data.select(np.sort(held))
        parts = data.train_test_split(test_size=share, stratify_by_column="label", seed=SPLIT_SEED)
    except ValueError as error:
        raise InputError(f"--dataset {name} is too small to hold out {share:.0%}, class by class: {error}") from error
    return parts["train"], parts["test"]


def _nearest(parts: list[np.ndarray], images: float) -> list[np.ndarray]:
    """Of parts of several sizes those that come near to a number of images; at least the smallest."""
    parts, chosen, have = sorted(parts, key=len, reverse=True), [], 0
    for part in parts:
        if abs(have + len(part) - images) < abs(have - images):
            chosen.append(part)
            have += len(part)
    return chosen or parts[-1:]


def digits_splits(seed: int = SPLIT_SEED) -> tuple[Splits, Splits]:
    """scikit-learn's bundled handwritten digits (1,797 images of 8 x 8), in two parts that share the test split.

    Returns:
        (source, target): a third of the training images to pretrain on, and the other two thirds.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = datasets.Features({"image": ImageFeature(decode=False), "label": ClassLabel(num_classes=10)})
    rows: dict[str, list] = {"image": [], "label": digits.target.tolist()}
    for pixels in digits.images:
        buffer = io.BytesIO()
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(buffer, format="png")
        rows["image"].append({"bytes": buffer.getvalue(), "path": None})

    def halve(data: Dataset, share: float) -> tuple[Dataset, Dataset]:
        parts = data.train_test_split(test_size=share, stratify_by_column="label", seed=seed)
        return parts["train"], parts["test"]

    rest, test = halve(Dataset.from_dict(rows, features=features), 0.2)
    target, source = halve(rest, 1 / 3)
    names = features["label"].names
    source_splits, target_splits = (
        Splits(*_held_out(part, 0.1, "digits"), test=test, class_names=names) for part in (source, target)
    )
    return source_splits, target_splits
