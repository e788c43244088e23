"""Folders of parquet files. The folder or the name of a file gives its split; no file belongs to two splits.

FOLDER/train-00000-of-00001.parquet, FOLDER/test-00000-of-00001.parquet     # as on the Hub, also in subfolders
FOLDER/train/0.parquet, FOLDER/testing/0.parquet                            # folders of splits, in any case
FOLDER/README.md                                                            # with `configs`, which then decide
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets import Features

from ..console import counted, log0
from ..errors import InputError
from .folders import SPLITS
from .image_files import files_below
from .labels import class_label

__all__ = ["check_class_names", "has_metadata", "has_parquet_files", "load_parquet_folder"]


def has_parquet_files(folder: Path) -> bool:
    """Return whether there is a parquet file anywhere below a folder."""
    return bool(_parquet_files(folder))


def load_parquet_folder(
    folder: Path,
    parameter: str = "dataset",
    streaming: bool = False,
    dataset_config: str | None = None,
    unsplit: str = "train",
) -> Any:
    """Load a folder of parquet files.

    Args:
        folder: folder of the dataset.
        parameter: what the caller calls the parameter, for errors.
        streaming: return IterableDatasets.
        dataset_config: one of several `configs` of the README.md.
        unsplit: the only split, if no folder or file has the name of a split.

    Returns:
        The splits.

    Raises:
        InputError: a file whose name has two splits.
    """
    if has_metadata(folder):
        return datasets.load_dataset(str(folder), dataset_config, streaming=streaming)
    files, unused = _divide(folder, parameter, unsplit)
    if unused:
        log0(f"{folder}: ignored {counted(len(unused), 'file')} without a split in the name, e.g. {unused[0].name}")
    patterns = {split: [glob.escape(str(path)) for path in paths] for split, paths in files.items()}
    return datasets.load_dataset("parquet", data_files=patterns, streaming=streaming)


def check_class_names(
    folder: Path, label_column: str, expected: Sequence[str], dataset_config: str | None = None, first: str = "train"
) -> None:
    """Check that all files of all splits number the same classes in the same order.

    `datasets` gives all splits the class names of the first file, so each file is read here.

    Args:
        folder: a folder that `load_parquet_folder` has loaded.
        label_column: column of the class labels.
        expected: the class names of the split `first`.
        dataset_config: as in `load_parquet_folder`.
        first: the split with which the others are compared.

    Raises:
        InputError: a file with other class names.
    """
    for split, paths in _split_files(folder, dataset_config).items():
        for path in paths:
            labels = class_label(Features.from_arrow_schema(pq.read_schema(path)).get(label_column))
            # A file without class names, of numbers only, takes those of the others.
            if labels is not None and labels.names != expected:
                raise InputError(
                    f"`dataset={folder}`: the class names of {split} differ from those of {first} in the file "
                    f"{path.name}: write all files with the same class names in the same order"
                )


def _split_files(folder: Path, dataset_config: str | None) -> dict[str, list[Path]]:
    """Return the parquet files of each split."""
    if has_metadata(folder):
        listed = datasets.load_dataset_builder(str(folder), dataset_config).config.data_files or {}
        return {str(split): [Path(path) for path in paths] for split, paths in listed.items()}
    return _divide(folder)[0]


def _divide(
    folder: Path, parameter: str = "dataset", unsplit: str = "train"
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the parquet files of each split by their folders and names, and the files that are in no split."""
    found: dict[str | None, list[Path]] = {}
    for path in _parquet_files(folder):
        found.setdefault(_split_of(path.relative_to(folder), f"`{parameter}={folder}`"), []).append(path)
    without = found.pop(None, [])
    if not found:
        return {unsplit: without}, []
    return {split: found[split] for split in dict.fromkeys(SPLITS.values()) if split in found}, without


def _split_of(path: Path, given: str) -> str | None:
    """Return the split of a file: that of the first folder that has the name of a split, or the one in its own name."""
    for part in path.parts[:-1]:
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    words = re.split(r"[^a-z]+", path.stem.lower())
    splits = sorted({SPLITS[word] for word in words if word in SPLITS})
    if len(splits) > 1:
        raise InputError(
            f"{given}: the name of the file {path} has two splits, {' and '.join(splits)}: rename it, or put it into a "
            "folder that is named after its split"
        )
    return splits[0] if splits else None


def _parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files below a folder, but for hidden ones, in the order of their names."""
    files = (path for path in files_below(folder) if path.suffix == ".parquet")
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def has_metadata(folder: Path) -> bool:
    """Return whether README.md has metadata of a dataset, by which `datasets` assigns the files to splits."""
    readme = folder / "README.md"
    return readme.is_file() and bool(re.search(r"^(configs|dataset_info):", readme.read_text(errors="replace"), re.M))
