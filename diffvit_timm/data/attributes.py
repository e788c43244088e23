"""Columns of true and false, such as the 40 attributes of CelebA, as one column of lists of class labels."""

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, List, Value

from ..console import counted, log0
from ..errors import InputError
from .labels import class_label

__all__ = ["join_attributes"]

TRUE_FALSE = ({0, 1}, {-1, 1})  # values of a column of numbers that is one of true and false


def join_attributes(name: str, loaded: DatasetDict, label_column: str) -> tuple[DatasetDict, str]:
    """Replace columns of true and false by one column 'label', with the list of those that are true.

    Args:
        name: name or folder of the dataset.
        loaded: all splits, stored or streamed.
        label_column: names of the columns, with commas between them; or 'auto', for all columns of true and false of a
            dataset that has at least two, and no column of class labels.

    Returns:
        The splits, and the label column. Nothing is changed if `label_column` is another column.

    Raises:
        InputError: a column that a split does not have, with other values than true and false, or with a missing value.
    """
    features = next(iter(loaded.values())).features
    names = [part.strip() for part in label_column.split(",")]
    if label_column == "auto":
        if any(map(class_label, features.values())):
            return loaded, label_column
        names = [column for column, feature in features.items() if feature == Value("bool")]
        if len(names) < 2:
            return loaded, label_column
        log0(
            f"{name}: the labels are {counted(len(names), 'column')} of true and false, from {names[0]} to {names[-1]}"
        )
    elif len(names) == 1:
        return loaded, label_column
    if len(set(names)) < len(names):
        raise InputError(f"`label_column={label_column}` names a column twice: name it once")
    splits = {split: _join(name, split, data, names) for split, data in loaded.items()}
    return type(loaded)(splits), "label"


def _join(name: str, split: str, data: Any, names: list[str]) -> Any:
    for column in names:
        if column not in data.features:
            raise InputError(
                f"`label_column` names {column}, which is not a column of {name} ({split}): choose among "
                f"{', '.join(data.features)}"
            )
    feature = List(ClassLabel(names=names))
    others = {column: kind for column, kind in data.features.items() if column not in {*names, "label"}}
    if isinstance(data, IterableDataset):
        _require_bool(name, data.features, names)
        return data.map(
            _joined, fn_kwargs={"names": names}, remove_columns=names, features=Features({**others, "label": feature})
        )
    is_true = np.stack([_truth(name, split, column, data) for column in names], axis=1)  # (images, columns)
    labels = [np.flatnonzero(row).tolist() for row in is_true]
    return data.select_columns(list(others)).add_column("label", labels, feature=feature)


def _joined(row: dict[str, Any], names: list[str]) -> dict[str, Any]:
    for column in names:
        if row[column] is None:
            raise InputError(f"an image of the stream has no value in the column {column}: give each image one")
    return {"label": [index for index, column in enumerate(names) if row[column]]}


def _require_bool(name: str, features: Features, names: list[str]) -> None:
    """Check columns of a stream, whose values cannot be seen in advance."""
    for column in names:
        if features[column] != Value("bool"):
            raise InputError(
                f"`label_column`: {column} of {name} is not a column of true and false: leave out `stream`, or "
                "store it as bool"
            )


def _truth(name: str, split: str, column: str, data: Dataset) -> np.ndarray:
    """Return which images have an attribute, (images,)."""
    values = data[column][:]
    if None in values:
        raise InputError(
            f"`dataset={name}`: row {values.index(None)} of {split} has no value in {column}: give each image one"
        )
    found = set(values)
    if not any(found <= pair for pair in TRUE_FALSE):
        shown = ", ".join(map(repr, sorted(found, key=str)[:4]))
        raise InputError(
            f"`label_column`: {column} of {name} is not a column of true and false: {split} has the values {shown}; "
            "numbers must be 0 and 1, or -1 and 1"
        )
    return np.array(values) > 0
