"""Fingerprints of splits, and images that two splits share."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from .stream import Stream

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["fingerprint", "shared_images"]

SAMPLE = 1000  # images of a stored split whose bytes are a part of its fingerprint
STREAM_SAMPLE = 100  # the same for a stream
DIGITS = 16  # of a fingerprint
ROWS = 1000  # per batch that is read to learn the sizes of the images


def fingerprint(split: "Dataset | Stream") -> str:
    """Return a fingerprint of the images and labels of a split, which does not depend on where the files are.

    For a stored split it covers all labels, the size in bytes of each image, and the bytes of SAMPLE images, evenly
    spaced: reading all bytes of a large dataset would take hours. For a stream it covers the number of shards and the
    first STREAM_SAMPLE images and labels.

    Args:
        split: a split of `Splits`.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if isinstance(split, Stream):
        digest.update(str(split.rows.num_shards).encode())
        for row in itertools.islice(split.rows, STREAM_SAMPLE):
            digest.update(_content(row["image"]))
            digest.update(str(row["label"]).encode())
        return digest.hexdigest()[:DIGITS]
    digest.update(np.asarray(split["label"], np.int64).tobytes())
    digest.update(_image_sizes(split).tobytes())
    for content in _contents(split, np.linspace(0, len(split) - 1, min(len(split), SAMPLE)).astype(int)):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:DIGITS]


def shared_images(splits: dict[str, "Dataset"]) -> dict[tuple[str, str], int]:
    """Count the distinct byte-identical images of every two splits.

    Only images of equal sizes in bytes are read.

    Args:
        splits: stored splits by their names.

    Returns:
        The number of images for each pair of names that has any.
    """
    sizes = {name: _image_sizes(split) for name, split in splits.items()}
    hashes = {}
    for name, split in splits.items():
        elsewhere = np.concatenate([own for other, own in sizes.items() if other != name])
        rows = np.flatnonzero(np.isin(sizes[name], elsewhere))
        hashes[name] = {hashlib.sha256(content).digest() for content in _contents(split, rows)}
    counts = {(a, b): len(hashes[a] & hashes[b]) for a, b in itertools.combinations(splits, 2)}
    return {pair: count for pair, count in counts.items() if count}


def _image_sizes(split: "Dataset") -> np.ndarray:
    """Return the size of each image in bytes, (n,); -1 for an image without bytes or file."""
    sizes = []
    for table in split.select_columns("image").with_format("arrow").iter(ROWS):
        images = table["image"].combine_chunks()
        stored = pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()
        paths = pc.struct_field(images, "path").to_pylist()
        sizes += [_file_size(path) if size is None else size for size, path in zip(stored, paths, strict=True)]
    return np.array(sizes, np.int64)


def _file_size(path: str | None) -> int:
    try:
        return Path(path).stat().st_size if path else -1
    except OSError:  # the training reports a missing file with its name
        return -1


def _contents(split: "Dataset", rows: np.ndarray) -> Iterator[bytes]:
    return (_content(image) for image in split.select(rows)["image"])


def _content(image: dict | None) -> bytes:
    """Return the bytes of an undecoded image, none if there are none."""
    if image is None:
        return b""
    if image["bytes"] is not None or not image["path"]:
        return image["bytes"] or b""
    try:
        return Path(image["path"]).read_bytes()
    except OSError:
        return b""
