"""Folders of images as datasets: the splits are folders at the top level, and the classes are folders below them.

    FOLDER/train/cat/1.jpg, FOLDER/train/cat/old/2.jpg, FOLDER/test/cat/3.jpg     # classes within splits
    FOLDER/train/cat/1.jpg, FOLDER/val/cat/2.jpg, FOLDER/test/3.jpg               # a test split without labels, unused
    FOLDER/cat/1.jpg, FOLDER/dog/2.jpg                                            # classes without splits
    FOLDER/1.jpg, FOLDER/2.jpg                                                    # images without labels

Nothing is guessed from words within a name: a class may be called train, and a file train-01.png.
"""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, NamedSplit
from datasets import Image as ImageFeature

from ..console import counted, log0
from ..errors import InputError
from .image_files import files_below, is_image

__all__ = ["SPLITS", "load_image_folder"]

# Names of the folders of splits, in any case, and the names of the splits in a dataset.
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


class ImageFile(NamedTuple):
    """An image file: its path, and the parts of the path below the folder of the dataset."""

    path: Path
    parts: tuple[str, ...]


def load_image_folder(folder: Path, parameter: str = "dataset", unsplit: str = "train") -> DatasetDict | None:
    """Load a folder of images, with one of the layouts at the top of this file.

    Args:
        folder: folder of the dataset.
        parameter: what the caller calls the parameter, for errors.
        unsplit: the only split, if there are no folders of splits.

    Returns:
        The splits, with the columns `image` (files that are not read yet) and, if there are classes, `label`. None for
        a folder without images.

    Raises:
        InputError: a layout that can be read in two ways, a split without class folders, or one with other classes.
    """
    files = sorted(files_below(folder))
    images = [ImageFile(path, path.relative_to(folder).parts) for path in files]
    images = [image for image in images if is_image(image.parts)]
    for image in images:
        _require_utf8(image.path, f"`{parameter}={folder}`")
    if not images:
        return None
    if all(len(image.parts) == 1 for image in images):
        _report_left_out(folder, files, images)
        return DatasetDict({unsplit: _dataset(unsplit, images)})
    given = f"`{parameter}={folder}`"
    splits = _split_folders(images, given)
    level = 0 if splits is None else 1  # of the class folders
    rows: dict[str, list[ImageFile]] = {split: [] for split in ([unsplit] if splits is None else splits.values())}
    for image in images:
        if len(image.parts) > level + 1:
            rows[unsplit if splits is None else splits[image.parts[0]]].append(image)
    labels = {split: [image.parts[level] for image in part] for split, part in rows.items()}
    names = sorted(set(labels["train"] if "train" in labels else itertools.chain(*labels.values())))
    for split, own in labels.items():
        if unknown := sorted(set(own) - set(names)):
            raise InputError(f"{given}: {split} has the class {unknown[0]}, which train does not have")
    _report_left_out(folder, files, list(itertools.chain(*rows.values())))
    return DatasetDict({split: _dataset(split, part, labels[split], names) for split, part in rows.items()})


def _require_utf8(path: Path, given: str) -> None:
    """Refuse a name in another encoding, as old archives have them; datasets stores paths as UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(f"{given}: the name {shown} is not UTF-8: rename it") from None


def _split_folders(images: list[ImageFile], given: str) -> dict[str, str] | None:
    """Return the folder at the top level -> its split; None if the folders at the top level are classes.

    Raises:
        InputError: the folders can be either, are of both kinds, or two of them are one split.
    """
    tops = sorted({image.parts[0] for image in images if len(image.parts) > 1})
    nested = {image.parts[0] for image in images if len(image.parts) > 2}
    splits = [top for top in tops if top.lower() in SPLITS and top in nested]
    if not splits:
        if all(top.lower() in SPLITS for top in tops):
            raise InputError(f"{given}: the images of {tops[0]} are in no class folder: put them into {tops[0]}/CLASS")
        return None
    if direct := [image for image in images if len(image.parts) == 2 and image.parts[0] in splits]:
        raise InputError(
            f"{given}: the folder {direct[0].parts[0]} has class folders, but also the image {direct[0].parts[1]}: "
            "move it into a class folder, or away"
        )
    if others := [top for top in tops if top not in splits and not _is_unlabelled_test(top, splits)]:
        raise InputError(
            f"{given}: the folder {splits[0]} is a split with class folders, but the folder {others[0]} is not: move "
            "one of them away"
        )
    found: dict[str, str] = {}
    for top in splits:
        split = SPLITS[top.lower()]
        if split in found.values():
            other = next(name for name, known in found.items() if known == split)
            raise InputError(f"{given} has two folders of one split, {other} and {top}: keep one")
        found[top] = split
    return found


def _is_unlabelled_test(top: str, splits: Sequence[str]) -> bool:
    """Return whether a folder is a test split without class folders, as ImageNet has it, beside a validation split."""
    return SPLITS.get(top.lower()) == "test" and "validation" in {SPLITS[split.lower()] for split in splits}


def _report_left_out(folder: Path, files: list[Path], used: list[ImageFile]) -> None:
    """Say how many files are not used, and of what kind they are."""
    left_out = set(files) - {image.path for image in used}
    kinds = Counter(path.suffix.lower() or path.name for path in left_out)
    if kinds:
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        log0(f"{folder}: not used: {counted(len(left_out), 'file')} in no class folder or of another kind ({shown})")


def _dataset(split: str, images: list[ImageFile], labels: Sequence[str] = (), names: Sequence[str] = ()) -> Dataset:
    """Make a dataset of image files; with names of classes it has labels."""
    columns: dict = {"image": [{"path": str(image.path), "bytes": None} for image in images]}
    features: dict = {"image": ImageFeature()}
    if names:
        index = {name: number for number, name in enumerate(names)}
        columns["label"] = [index[label] for label in labels]
        features["label"] = ClassLabel(names=list(names))
    return Dataset.from_dict(columns, features=Features(features), split=NamedSplit(split))
