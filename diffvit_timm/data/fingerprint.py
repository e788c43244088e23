"""Fingerprints of splits, and images that two splits share."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from ..console import track
from .labels import is_multi_label
from .stream import Stream

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["fingerprint", "shared_images"]

SAMPLE = 1000  # images of a stored split whose bytes are a part of its fingerprint
STREAM_SAMPLE = 100  # the same for a stream
DIGITS = 16  # of a fingerprint
HEAD = 4096  # bytes by which images of equal sizes are compared first


def fingerprint(split: "Dataset | Stream") -> str:
    """Return a fingerprint of the images and labels of a split, which does not depend on where the files are.

    For a stored split it covers all labels, the size in bytes of each image, and the bytes of SAMPLE images, evenly
    spaced: reading all bytes of a large dataset would take hours. A change of the other images that keeps every size is
    therefore not seen. For a stream it covers the number of shards and the
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
    labels = split["label"][:]
    digest.update(str(labels).encode() if is_multi_label(split.features) else np.asarray(labels, np.int64).tobytes())
    digest.update(_image_sizes(split).tobytes())
    for content in _contents(split, np.linspace(0, len(split) - 1, min(len(split), SAMPLE)).astype(int)):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:DIGITS]


def shared_images(splits: dict[str, "Dataset"]) -> dict[tuple[str, str], int]:
    """Count the distinct byte-identical images of every two splits.

    Only images of equal sizes are read, and whole only if their first HEAD bytes are equal, too.

    Args:
        splits: stored splits by their names.

    Returns:
        The number of images for each pair of names that has any.
    """
    keys: dict[str, np.ndarray] = {name: _image_sizes(split) for name, split in splits.items()}
    rows = {name: np.arange(len(split)) for name, split in splits.items()}
    for length in (HEAD, None):
        for name in splits:
            elsewhere = np.concatenate([own for other, own in keys.items() if other != name])
            rows[name] = rows[name][np.isin(keys[name], elsewhere)]
        for name, split in splits.items():
            contents = _contents(split, rows[name], length)
            reading = track(contents, f"comparing {len(rows[name]):,} {name} images", len(rows[name]))
            keys[name] = np.array([hashlib.sha256(content).digest() for content in reading], "S32")
    found = {name: set(own.tolist()) for name, own in keys.items()}
    counts = {(a, b): len(found[a] & found[b]) for a, b in itertools.combinations(splits, 2)}
    return {pair: count for pair, count in counts.items() if count}


def _image_sizes(split: "Dataset") -> np.ndarray:
    """Return the size of each image in bytes, (n,); -1 for an image without bytes or file.

    The sizes of stored images are differences of Arrow's offsets, so their bytes are not read.
    """
    sizes: list[int] = []
    for chunk in split.data.column("image").chunks:
        stored = pc.binary_length(pc.struct_field(chunk, "bytes")).to_pylist()
        paths = pc.struct_field(chunk, "path").to_pylist() if None in stored else stored
        sizes += [_file_size(path) if size is None else size for size, path in zip(stored, paths, strict=True)]
    every = np.array(sizes, np.int64)
    return every if split._indices is None else every[split._indices.column(0).to_numpy()]


def _file_size(path: str | None) -> int:
    try:
        return Path(path).stat().st_size if path else -1
    except OSError:  # the training reports a missing file with its name
        return -1


def _contents(split: "Dataset", rows: np.ndarray, length: int | None = None) -> Iterator[bytes]:
    return (_content(image, length) for image in split.select(rows)["image"])


def _content(image: dict | None, length: int | None = None) -> bytes:
    """Return the bytes of an undecoded image, or only the first ones; none if there are none."""
    if image is None:
        return b""
    if image["bytes"] is not None or not image["path"]:
        return (image["bytes"] or b"")[:length]
    try:
        with open(image["path"], "rb") as file:
            return file.read() if length is None else file.read(length)
    except OSError:
        return b""
