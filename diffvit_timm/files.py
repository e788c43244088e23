"""Atomic writes, and clear errors for a full disk or a damaged file."""

import contextlib
import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from .checksums import write_checksums
from .console import shortened
from .errors import InputError

__all__ = [
    "atomic_folder",
    "csv_file",
    "disk_errors",
    "fill_folder",
    "read_json",
    "read_yaml",
    "remove_folder",
    "require_writable",
    "restore_folder",
    "spreadsheet_text",
    "write_atomically",
    "write_csv",
]


ERROR_LENGTH = 300  # characters of a parser's error
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")  # of a cell that a spreadsheet computes


@contextlib.contextmanager
def disk_errors(what: str, folder: Path, advice: str) -> Iterator[None]:
    """Turn the errors of a full or broken disk within this context into one InputError.

    Args:
        what: name of the thing that is written, for the message.
        folder: folder that it is written to.
        advice: what the user can do after freeing some space, for the end of the message.

    Raises:
        InputError: the disk is full or broken.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError, safetensors its own
        free = shutil.disk_usage(folder).free / 2**20 if folder.exists() else 0.0
        raise InputError(
            f"{what} cannot be written to {folder} ({error}; {free:.0f} MiB free): free some space and {advice}"
        ) from error


@contextlib.contextmanager
def fill_folder(folder: Path, what: str, advice: str) -> Iterator[Path]:
    """Fill a folder of the user, all or nothing.

    The context gets a temporary folder. When it ends without an error, everything in that folder moves to `folder`,
    files first and folders last. An error leaves nothing behind.

    Args:
        folder: folder to fill, new or empty.
        what, advice: as in `disk_errors`.

    Raises:
        InputError: the disk is full or broken.
    """
    with disk_errors(what, folder, advice):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            yield Path(temporary)
            for entry in sorted(Path(temporary).iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
                entry.rename(folder / entry.name)


@contextlib.contextmanager
def atomic_folder(path: Path, what: str, advice: str) -> Iterator[Path]:
    """Replace a folder atomically: readers find the old content or the new content, never a part.

    The context gets an empty folder beside `path`, which is renamed to `path` at the end. An error before that leaves
    the old folder untouched. The folder gets a file SHA256SUMS, for `check_checksums`. Use it only inside a run folder,
    because it deletes what else is called PATH.new or PATH.old. A process that is killed between the two renames leaves
    the old folder as PATH.old: see `restore_folder`.

    Args:
        path: folder to create or replace.
        what, advice: as in `disk_errors`.

    Raises:
        InputError: the disk is full or broken.
    """
    new, old = _new_and_old(path)
    shutil.rmtree(new, ignore_errors=True)  # left over from a run that was killed
    try:
        with disk_errors(what, path.parent, advice):
            new.mkdir(parents=True)
            yield new
            write_checksums(new)
            # Flush before the rename: a power failure could otherwise leave a renamed folder of empty files.
            for file in (*new.iterdir(), new):
                _flush(file)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            new.rename(path)
            _flush(path.parent)
    except InputError:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def require_writable(folder: Path, given: str) -> None:
    """Check that files can be created in a folder.

    Args:
        folder: existing folder.
        given: the user's parameter with its value, for the error.

    Raises:
        InputError: they cannot.
    """
    try:
        # Try it: permission bits say nothing about root, read-only mounts and quotas.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{given} cannot be written ({error}): choose another folder") from error


def remove_folder(path: Path) -> None:
    """Remove a folder. It is renamed first, so that a partly removed folder never looks like a complete one."""
    _, old = _new_and_old(path)
    path.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Restore a folder after the process was killed between the two renames of `atomic_folder`."""
    _, old = _new_and_old(path)
    if old.exists() and not path.exists():
        with contextlib.suppress(FileNotFoundError):  # another process of the training was faster
            old.rename(path)


def _new_and_old(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".new"), path.with_name(path.name + ".old")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically: readers find the old text or the new text, never a part."""
    new, _ = _new_and_old(path)
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def read_json(path: Path, advice: str) -> dict:
    """Read a JSON file with one object.

    Args:
        path: file to read.
        advice: what the user can do about a damaged file, for the end of the error.

    Raises:
        InputError: the file is damaged.
    """
    return _read_mapping(path, json.loads, advice)


def read_yaml(path: Path, advice: str) -> dict:
    """Read a YAML file with one mapping. The arguments and errors are those of `read_json`."""
    return _read_mapping(path, yaml.safe_load, advice)


def _read_mapping(path: Path, parse: Callable[[str], Any], advice: str) -> dict:
    try:
        content = parse(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it contains a {type(content).__name__}, not names with values")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = shortened(str(error).replace("`", "'"), ERROR_LENGTH)
        raise InputError(f"{path} is damaged ({reason}): {advice}") from error
    return content


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping]) -> None:
    """Write a CSV file in UTF-8, atomically.

    Args:
        path: file to write.
        columns: names of the columns, in their order.
        rows: one mapping per row, with a value for each column.
    """
    with csv_file(path, columns) as write_row:
        for row in rows:
            write_row(row)


@contextlib.contextmanager
def csv_file(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping], Any]]:
    """Write a CSV file in UTF-8 row by row, atomically: it has its name when this context ends without an error.

    Args:
        path: file to write.
        columns: names of the columns, in their order.

    Yields:
        Function that writes a row: a mapping with a value for each column.
    """
    new, _ = _new_and_old(path)
    try:
        with new.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            yield writer.writerow
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def spreadsheet_text(text: str) -> str:
    """Return a text of a stranger for a cell of a table.

    A spreadsheet computes a text that begins with =, +, -, @, a tab or a line break. Such a text gets an apostrophe in
    front, unless it is a number. Bytes of file names that are not UTF-8 become escapes.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    if not text.startswith(FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text
