"""Folders of images with their labels in a table beside them, as the imagefolder of `datasets` reads them.

    FOLDER/train/metadata.csv, FOLDER/train/1.jpg, FOLDER/test/metadata.csv, FOLDER/test/2.jpg
    FOLDER/train/images/metadata.csv, FOLDER/train/images/1.jpg, FOLDER/train/masks/1.png, ...
    FOLDER/metadata.jsonl, FOLDER/1.jpg                                                         # without splits

A table has a column file_name, and one column per attribute of the images. Class folders come before a table.
"""

import glob
from collections import Counter
from pathlib import Path
from typing import Any

import datasets

from ..console import counted, log0
from ..errors import InputError
from .folders import SPLITS
from .image_files import image_files

__all__ = ["find_tables", "load_labelled_folder"]

TABLES = ("metadata.csv", "metadata.jsonl")
IMAGES = "images"  # folder of the images of a split, if there are others, such as masks


def find_tables(folder: Path, given: str, unsplit: str = "train") -> dict[str, Path]:
    """Find the tables of a folder of images: split -> table. There are none if the images are in class folders.

    Args:
        folder: folder of the dataset.
        given: the user's parameter with the name of the folder, for the error.
        unsplit: the only split, if there are no folders of splits.

    Raises:
        InputError: the training images have a table, and those of another split do not; or one table for all splits.
    """
    parts = [path for path in _folders(folder) if path.name.lower() in SPLITS]
    splits = {SPLITS[path.name.lower()]: path for path in parts}
    if len(splits) < len(parts):
        return {}  # two folders of one split, which `load_image_folder` refuses
    found = {split: _find_table(path) for split, path in (splits or {unsplit: folder}).items()}
    own = found.get("train", found.get(unsplit))
    if own is None:
        if splits and (top := _table_in(folder)) and not any(_has_class_folders(path) for path in parts):
            raise InputError(f"{given}: divide the table {top.name}, and put one part into each of {_names(parts)}")
        return {}
    for split, path in found.items():
        if path is None and image_files(splits[split]):
            raise InputError(f"{given}: the images of train have a table, but those of {split} do not: add {own.name}")
    return {split: path for split, path in found.items() if path is not None}


def _names(paths: list[Path]) -> str:
    return " and ".join(path.name for path in paths)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _table_in(folder: Path) -> Path | None:
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def _has_class_folders(folder: Path) -> bool:
    """Return whether the images below a folder are in two folders or more."""
    return len({image.relative_to(folder).parts[:-1][:1] for image in image_files(folder)}) > 1


def _find_table(folder: Path) -> Path | None:
    """Return the table of a split, in its folder or in its folder images/; None if the images are in class folders."""
    table = _table_in(folder)
    if table and _has_class_folders(folder):
        log0(f"{table} is not used: the folders beside it are the classes")
        return None
    return table or _table_in(folder / IMAGES)


def load_labelled_folder(tables: dict[str, Path], streaming: bool = False) -> Any:
    """Load folders of images with a table each.

    Args:
        tables: what `find_tables` returns, not empty.
        streaming: return IterableDatasets.

    Returns:
        The splits, with the column `image` and those of the tables.

    Raises:
        InputError: a row without an image, or two rows of one image; or any error of `datasets`.
    """
    files = {split: [f"{glob.escape(str(table.parent))}/**"] for split, table in tables.items()}
    loaded = datasets.load_dataset("imagefolder", data_files=files, drop_labels=True, streaming=streaming)
    if not streaming:
        for split, table in tables.items():
            _check_files(loaded[split], table)
    return loaded


def _check_files(data: datasets.Dataset, table: Path) -> None:
    """Check that a table names every image once, and report images without a row."""
    if "image" not in data.features:
        raise InputError(f"{table} names no images: its column file_name must have their names")
    images = data.select_columns("image").cast_column("image", datasets.Image(decode=False))["image"]
    paths = [(image or {}).get("path") for image in images]
    for row, path in enumerate(paths):
        if not path or not Path(path).is_file():
            raise InputError(f"{table}: row {row} names no image that is there: correct its file_name")
    twice, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise InputError(f"{table} has {count} rows of {Path(str(twice)).name}: keep one")
    if without := set(map(str, image_files(table.parent))) - set(paths):
        log0(f"{table.parent}: not used: {counted(len(without), 'image')} without a row in {table.name}")
