"""Writing so that what is on the disk is whole, and a full disk is one clear error."""

import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from .errors import InputError

__all__ = [
    "filling",
    "new_folder",
    "output_folder",
    "recover_folder",
    "remove_folder",
    "replace",
    "whole_folder",
    "writing",
]


@contextlib.contextmanager
def writing(what: str, folder: Path, then: str) -> Iterator[None]:
    """Make one error of what a full or broken disk makes of the writing in this context.

    Args:
        what: is written.
        folder: where.
        then: what the user can do once there is space.

    Raises:
        InputError: it could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save has RuntimeErrors, safetensors its own
        free = shutil.disk_usage(folder).free / 2**20 if folder.exists() else 0.0
        raise InputError(
            f"{what} cannot be written to {folder} ({error}; {free:.0f} MiB free): free some space and {then}"
        ) from error


@contextlib.contextmanager
def filling(folder: Path, what: str, then: str) -> Iterator[Path]:
    """A folder aside to fill, whose parts go into a new or empty one of the user's at the end, its folders last.

    Raises:
        InputError: as `writing`.
    """
    with writing(what, folder, then):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            yield Path(aside)
            for part in sorted(Path(aside).iterdir(), key=lambda part: (part.is_dir(), part.name)):
                part.rename(folder / part.name)


@contextlib.contextmanager
def whole_folder(path: Path, what: str, then: str) -> Iterator[Path]:
    """A folder to fill, which takes the place `path` at the end; whatever happens before leaves what is there.

    For places within a run: what is called `path` and .new or .old, beside it, is taken for its own rest.
    Flushed to the disk first: a machine that stops could otherwise leave a renamed folder of empty files.

    Raises:
        InputError: as `writing`.
    """
    aside, old = _beside(path)
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    try:
        with writing(what, path.parent, then):
            aside.mkdir(parents=True)
            yield aside
            for file in (*aside.iterdir(), aside):
                _flush(file)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            aside.rename(path)
            _flush(path.parent)
    except InputError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder; half a removal must not look like the whole one."""
    _, old = _beside(path)
    path.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Give a folder back that a kill took between the two renames of `whole_folder`."""
    _, old = _beside(path)
    if old.exists() and not path.exists():
        old.rename(path)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".new"), path.with_name(path.name + ".old")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, text: str) -> None:
    """Write a file aside and rename it: whoever reads it finds the old text or the new one."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    aside.replace(path)


def output_folder(given: str, name: str) -> Path:
    """The folder that a command writes: `given`, or runs/NAME-DATE-TIME for 'auto'; nothing is made yet.

    Raises:
        InputError: it holds something already, or cannot be written.
    """
    return new_folder(f"runs/{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}" if given == "auto" else given)


def new_folder(name: str | Path, option: str = "--output") -> Path:
    """The path of a folder that can be written, and is new or empty; nothing is made yet.

    Raises:
        InputError: it holds something already, or cannot be written.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        raise InputError(f"{option} {path} is a file: give a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{option} {path} is used already: give a new folder, or empty it yourself")
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):  # permission bits do not tell: root, read-only mounts, quotas
            pass
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error}): give another folder") from error
    return path
