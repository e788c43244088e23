"""The columns of a dataset: images, labels and groups. The errors of all functions name the dataset and the column."""

from datasets import ClassLabel, Dataset, Features, IterableDataset, List, Value
from datasets import Image as ImageFeature

from ..errors import InputError
from .labels import class_label, class_names

__all__ = ["UNDECODED", "check_group_column", "find_image_column", "find_label_column", "select_columns"]

# Columns of class labels that are found by themselves; CIFAR-100 has a second one, coarse_label.
LABEL_NAMES = ("label", "fine_label")
UNDECODED = {"bytes": Value("binary"), "path": Value("string")}  # an image in a streamed row


def find_image_column(name: str, features: Features, column: str, parameter: str = "dataset") -> str:
    """Return the name of the image column.

    Args:
        name: name or folder of the dataset.
        features: features of a split.
        column: column that the user named; 'auto' for the only image column.
        parameter: what the caller calls the parameter `name`.

    Raises:
        InputError: it is not an image column, or there is not exactly one.
    """
    images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if column == "auto":
        if len(images) != 1:
            raise InputError(
                f"`{parameter}={name}` has {len(images)} image columns ({images}): keep one, or pass `image_column`"
            )
        return images[0]
    if column not in images:
        raise InputError(f"`image_column={column}` is not an image column of {name}: choose one of {images}")
    return column


def find_label_column(name: str, features: Features, column: str, multi_label: bool = False) -> str:
    """Return the name of the label column, if it has two classes or more.

    Args:
        name, features: as in `find_image_column`.
        column: column that the user named; 'auto' for label, fine_label, or the only column of class labels.
        multi_label: whether it may be a column of lists of class labels.

    Raises:
        InputError: it is not a column of class labels, there is not exactly one, it has only one class, or it has
            several labels per image where one is needed.
    """
    labels = [column for column, feature in features.items() if class_label(feature)]
    none = _without_labels(features, multi_label)
    if column == "auto":
        known = [label for label in LABEL_NAMES if label in labels] or labels
        if len(known) != 1:
            advice = f"choose one with `label_column`: {labels}" if labels else none
            raise InputError(f"`dataset={name}` has {len(labels)} columns of class labels: {advice}")
        column = known[0]
    if column not in labels:
        advice = f"choose one of {labels}" if labels else f"it has none; {none}"
        raise InputError(f"`label_column={column}` is not a class label of {name}: {advice}")
    if not (multi_label or isinstance(features[column], ClassLabel)):
        raise InputError(
            f"`label_column={column}` of {name} has a list of labels per image, but this needs one label per image: "
            "choose another column or dataset; diffvit train takes such lists"
        )
    if len(class_names(features[column])) < 2:
        raise InputError(f"`dataset={name}` has only one class: a classifier needs two or more")
    return column


def _without_labels(features: Features, multi_label: bool) -> str:
    """Return what to do about a dataset without a column of class labels."""
    if list(features) == ["image"]:
        return "its images are in no class folder; put them into CLASS/"
    if lists := [column for column, feature in features.items() if isinstance(feature, List)]:
        return f"cast its lists, such as {lists[0]}, to List(ClassLabel(names=...)) of datasets"
    booleans = [column for column, feature in features.items() if feature == Value("bool")]
    if len(booleans) > 1 and not multi_label:
        return f"its columns of true and false, such as {booleans[0]}, are several labels per image; use diffvit train"
    advice = "make one by class_encode_column of datasets"
    return f"{advice}, or name two or more columns of true and false, as `label_column=A,B`" if multi_label else advice


def check_group_column(name: str, features: Features, column: str, columns: dict, is_divided: bool) -> str:
    """Return the group column, if it exists and there is something to divide.

    Args:
        name, features, column: as in `find_image_column`.
        columns: the columns of the images and labels -> their new names.
        is_divided: whether the dataset has its own three splits, so that there is nothing to divide.

    Raises:
        InputError: it does not exist, is another column, or has no effect.
    """
    if column not in features:
        raise InputError(f"`group_column={column}` is not a column of {name}: choose one of {list(features)}")
    if is_divided:
        raise InputError(f"`group_column={column}` has no effect: {name} has its own train, validation and test splits")
    if column in columns:
        raise InputError(f"`group_column={column}` is the column of the {columns[column]}s: choose another")
    return column


def select_columns(data: Dataset, columns: dict[str, str]) -> Dataset:
    """Keep these columns under the names that they map to; images stay undecoded."""
    image = next(column for column, name in columns.items() if name == "image")
    # The cast comes first: datasets decodes and re-encodes streamed images when it renames columns after it reads them.
    # Streamed rows become plain dicts, because datasets encodes undecoded images too, and fails on those without bytes.
    kind = UNDECODED if isinstance(data, IterableDataset) else ImageFeature(decode=False)
    data = data.cast_column(image, kind).select_columns(list(columns))
    return data.rename_columns({k: v for k, v in columns.items() if k != v})
