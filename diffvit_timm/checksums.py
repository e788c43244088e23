"""Checksums of the files of a folder, in the format of the program sha256sum."""

import hashlib
import re
from pathlib import Path

__all__ = ["CHECKSUMS", "check_checksums", "check_unchanged", "write_checksums"]

CHECKSUMS = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS with a line per file of a folder."""
    lines = [f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / CHECKSUMS).write_text("".join(lines))


def check_checksums(folder: Path) -> None:
    """Check the files of a folder against its SHA256SUMS.

    Args:
        folder: folder that `write_checksums` has finished.

    Raises:
        ValueError: a file that SHA256SUMS lists is missing or damaged, or SHA256SUMS is.
    """
    try:
        text = (folder / CHECKSUMS).read_text()
        lines = re.findall(r"([0-9a-f]{64})  (.+)\n", text)
        if not lines or "".join(f"{digest}  {name}\n" for digest, name in lines) != text:
            raise ValueError(f"{CHECKSUMS} is damaged")
        for digest, name in lines:
            if _sha256(folder / name) != digest:
                raise ValueError(f"{name} is damaged: it does not have the checksum in {CHECKSUMS}")
    except OSError as error:
        name = Path(error.filename or folder).name
        raise ValueError(f"{name} cannot be read ({error.strerror})") from error


def check_unchanged(folder: Path) -> None:
    """Check a folder of weights, if it has checksums.

    Args:
        folder: folder of weights.

    Raises:
        ValueError: a file is missing, damaged or changed.
    """
    if (folder / CHECKSUMS).is_file():
        try:
            check_checksums(folder)
        except ValueError as error:
            raise ValueError(
                f"{error}; restore the folder, or, if you changed its files yourself, delete {folder / CHECKSUMS}"
            ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
