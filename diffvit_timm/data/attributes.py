"""Columns of true and false, such as the 40 attributes of CelebA, as one column of lists of class labels."""

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, List, Value

from ..console import counted, log0
from ..errors import InputError
from .labels import class_label

__all__ = ["join_attributes"]

JOINED = "joined attributes"  # a column name that no dataset has
NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
TRUE_FALSE = ({0, 1}, {-1, 1})  # values of a numeric column that counts as true/false


def join_attributes(name: str, loaded: DatasetDict, label_column: str) -> tuple[DatasetDict, str]:
    """Join columns of true and false to one column, with the list of those that are true.

    Args:
        name: name or folder of the dataset.
        loaded: all splits, stored or streamed.
        label_column: names of the columns, with commas between them; or 'auto', for all columns of true and false of a
            dataset that has at least two, and no column of class labels.

    Returns:
        The splits, and the label column. Nothing is changed if `label_column` is another column.

    Raises:
        InputError: a column that a split does not have, with other values than true and false, or with missing values.
    """
    features = next(iter(loaded.values())).features
    if label_column == "auto":
        if any(map(class_label, features.values())):
            return loaded, label_column
        names = [column for column, feature in features.items() if feature == Value("bool")]
        if len(names) < 2:
            return loaded, label_column
        log0(
            f"{name}: the labels are {counted(len(names), 'column')} of true and false, from {names[0]} to {names[-1]}"
        )
    elif "," not in label_column:
        return loaded, label_column
    else:
        names = [part.strip() for part in label_column.split(",") if part.strip()]
    if len(names) < 2:
        raise InputError(f"`label_column={label_column}` needs two names or more: a class is one column")
    if len(set(names)) < len(names):
        raise InputError(f"`label_column={label_column}` names a column twice: name it once")
    splits = {split: _join(name, split, data, names) for split, data in loaded.items()}
    return type(loaded)(splits), JOINED


def _join(name: str, split: str, data: Any, names: list[str]) -> Any:
    for column in names:
        if column not in data.features:
            raise InputError(
                f"`label_column` names {column}, which is not a column of {name} ({split}): choose among "
                f"{', '.join(data.features)}"
            )
    feature = List(ClassLabel(names=names))
    others = {column: kind for column, kind in data.features.items() if column not in names}
    if isinstance(data, IterableDataset):
        _require_bool(name, data.features, names)
        # Images stay undecoded, because the map would encode them again.
        return data.decode(False).map(
            _joined,
            fn_kwargs={"names": names, "given": f"{name} ({split})"},
            remove_columns=names,
            features=Features({**others, JOINED: feature}),
        )
    columns = [data[column][:] for column in names]
    if all(value is None for column in columns for value in column):
        labels: list = [None] * len(data)  # a test split without labels
    else:
        given = f"{name} ({split})"
        is_true = [_truth(given, column, data, own) for column, own in zip(names, columns, strict=True)]
        labels = [np.flatnonzero(row).tolist() for row in np.stack(is_true, axis=1)]  # (images, columns)
    return data.select_columns(list(others)).add_column(JOINED, labels, feature=feature)


def _joined(row: dict[str, Any], names: list[str], given: str) -> dict[str, Any]:
    for column in names:
        if row[column] is None:
            raise InputError(f"`dataset={given}`: an image has no value in {column}: fill it in for every image")
    return {JOINED: [index for index, column in enumerate(names) if row[column]]}


def _require_bool(name: str, features: Features, names: list[str]) -> None:
    """Check columns of a stream, whose values cannot be seen in advance."""
    for column in names:
        if features[column] != Value("bool"):
            raise InputError(
                f"`label_column`: {column} of {name} is not a column of true and false: leave out `stream`, or "
                "store it as bool"
            )


def _truth(given: str, column: str, data: Dataset, values: list) -> np.ndarray:
    """Return which images have an attribute, (images,)."""
    kind = data.features[column]
    wrong = f"`label_column`: {column} of {given} is not a column of true and false"
    if not (isinstance(kind, Value) and kind.dtype in ("bool", *NUMBERS)):
        raise InputError(f"{wrong}: it has the type {getattr(kind, 'dtype', type(kind).__name__)}; store it as bool")
    if None in values:
        raise InputError(
            f"`dataset={given}`: row {values.index(None)} has no value in {column}: fill it in for every image"
        )
    found = set(values)
    if not any(found <= pair for pair in TRUE_FALSE):
        shown = ", ".join(map(repr, sorted(found, key=str)[:4]))
        raise InputError(f"{wrong}: it has the values {shown}; numbers must be 0 and 1, or -1 and 1")
    return np.array(values) > 0
