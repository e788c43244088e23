"""Folders of images with their labels in a table beside them, as the imagefolder of `datasets` reads them.

    FOLDER/train/metadata.csv, FOLDER/train/1.jpg, FOLDER/test/metadata.csv, FOLDER/test/2.jpg
    FOLDER/train/images/metadata.csv, FOLDER/train/images/1.jpg, FOLDER/train/masks/1.png, ...
    FOLDER/metadata.jsonl, FOLDER/1.jpg                                                         # without splits

A table has a column file_name, and one column per attribute of the images. Class folders come before a table.
"""

import glob
from pathlib import Path
from typing import Any

import datasets

from ..errors import InputError
from .folders import SPLITS
from .image_files import image_files

__all__ = ["find_tables", "load_labelled_folder"]

TABLES = ("metadata.csv", "metadata.jsonl")


def find_tables(folder: Path, given: str, unsplit: str = "train") -> dict[str, Path]:
    """Find the folders whose images have a table: split -> folder. There are none if the images are in class folders.

    Args:
        folder: folder of the dataset.
        given: the user's parameter with the name of the folder, for the error.
        unsplit: the only split, if there are no folders of splits.

    Raises:
        InputError: the training images have a table, and those of another split do not.
    """
    parts = [path for path in _folders(folder) if path.name.lower() in SPLITS]
    splits = {SPLITS[path.name.lower()]: path for path in parts}
    if len(splits) < len(parts):
        return {}  # two folders of one split, which `load_image_folder` refuses
    found = {split: _labelled_part(path) for split, path in (splits or {unsplit: folder}).items()}
    if found.get("train", found.get(unsplit)) is None:
        return {}
    for split, path in found.items():
        if path is None and image_files(splits[split]):
            raise InputError(f"{given}: the images of train have a table, but those of {split} do not: add {TABLES[0]}")
    return {split: path for split, path in found.items() if path is not None}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _labelled_part(folder: Path) -> Path | None:
    """Return the folder with the table of a split: it, or one in it; None if the images are in class folders."""
    found = [path for path in (folder, *_folders(folder)) if any((path / name).is_file() for name in TABLES)]
    if len(found) != 1:
        return None
    parts = {image.relative_to(folder).parts[:-1][:1] for image in image_files(folder)}
    return None if found == [folder] and len(parts) > 1 else found[0]


def load_labelled_folder(tables: dict[str, Path], streaming: bool = False) -> Any:
    """Load folders of images with a table each.

    Args:
        tables: what `find_tables` returns, not empty.
        streaming: return IterableDatasets.

    Returns:
        The splits, with the column `image` and those of the tables.
    """
    files = {split: [f"{glob.escape(str(path))}/**"] for split, path in tables.items()}
    return datasets.load_dataset("imagefolder", data_files=files, drop_labels=True, streaming=streaming)
