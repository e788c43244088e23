"""Output folders: they are checked before anything is computed, and belong to one process at a time."""

import contextlib
import datetime
import os
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from .console import is_main, log0
from .errors import InputError
from .files import require_writable

__all__ = ["LOCK", "claim_folder", "claim_new_folder", "is_unused", "new_folder", "output_folder"]

LOCK = ".lock"  # file in a claimed folder, with the host and the process that claimed it
UNFINISHED = "config.yaml.new"  # the first file of a run, before it is renamed
LEASE = 60.0  # seconds; a lock of another host that was not renewed for so long counts as abandoned


class _TakenError(InputError):
    """The folder is in use, or is not empty."""


@contextlib.contextmanager
def output_folder(given: str | Path, name: str) -> Iterator[Path]:
    """Claim a folder for the output of a command, as `claim_new_folder`.

    Args:
        given: path of the folder, or 'auto' for runs/NAME-DATE-TIME, which no other process gets.
        name: name of the command.

    Yields:
        The path.

    Raises:
        InputError: as `claim_new_folder`.
    """
    with contextlib.ExitStack() as stack:
        yield _claim_auto(name, stack) if given == "auto" else stack.enter_context(claim_new_folder(given))


def _claim_auto(name: str, stack: contextlib.ExitStack) -> Path:
    """Claim the folder of the present second; if it is taken, the same name with a number."""
    path = base = f"runs/{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        try:
            return stack.enter_context(claim_new_folder(path, waits=False))
        except _TakenError:
            number += 1
            path = f"{base}-{number}"


@contextlib.contextmanager
def claim_new_folder(given: str | Path, parameter: str = "output", waits: bool = True) -> Iterator[Path]:
    """Claim a new or empty folder, as `claim_folder`.

    Args:
        given: path of the folder; ~ is the home folder.
        parameter, waits: as in `claim_folder`.

    Yields:
        The path. Other processes than the main one get it without a check, which the main one makes.

    Raises:
        InputError: the folder is not empty, cannot be written, or is in use.
    """
    if not is_main():
        yield Path(given).expanduser()
        return
    path = new_folder(given, parameter)
    with claim_folder(path, parameter, waits):
        yield new_folder(path, parameter)  # checked again: another process may have filled it in between


@contextlib.contextmanager
def claim_folder(path: Path, parameter: str = "output", waits: bool = True) -> Iterator[None]:
    """Claim a folder for this process, until the context ends or the process dies.

    The folder is created if it does not exist, and removed at the end if it is empty. The claim of a process that was
    killed is taken over: at once on the same host, and from another host after LEASE seconds without a renewal. In
    distributed training only the main process claims the folder.

    Args:
        path: folder to claim.
        parameter: name of the user's parameter, for the error.
        waits: wait for a process on another host, which may have died.

    Raises:
        InputError: another process uses the folder, or it cannot be written.
    """
    if not is_main():
        yield
        return
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    lock = SoftFileLease(path / LOCK, lease_duration=LEASE, on_compromise=_give_up, thread_local=False)
    try:
        _acquire(lock, path, parameter, waits)
        try:
            yield
        finally:
            lock.release()
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for folder in created:
                folder.rmdir()


def _acquire(lock: SoftFileLease, path: Path, parameter: str, waits: bool) -> None:
    """Acquire the lock of a folder. Other hosts cannot see whether a process lives, so they wait for its next sign."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        _remove_damaged(path / LOCK)
        lock.acquire(timeout=0)
        return
    except Timeout:
        owner = lock.owner
    except OSError as error:
        raise InputError(f"`{parameter}={path}` cannot be written ({error}): choose another folder") from error
    if waits and owner and owner.hostname != _own_host():
        log0(
            f"{path} is in use by process {owner.pid} on {_shown(owner.hostname)}; "
            f"waiting up to {1.5 * LEASE:.0f} s in case that process has died"
        )
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=1.5 * LEASE)
            return
    holder = f"process {owner.pid} on {_shown(owner.hostname)}" if owner else "another process"
    raise _TakenError(
        f"`{parameter}={path}` is in use by {holder}: wait until it ends, or choose another folder (the lock is "
        f"{path / LOCK})"
    )


def _remove_damaged(marker: Path) -> None:
    """Remove a lock that names no process and is older than LEASE, as a failure of the power can leave it."""
    with contextlib.suppress(OSError):
        is_old = time.time() - marker.stat().st_mtime > LEASE
        if is_old and SoftFileLease(marker, lease_duration=LEASE).owner is None:
            marker.unlink()
            log0(f"{marker} was damaged and has been removed")


def _own_host() -> str:
    """Return the name of the host in a lock of this process. Containers have different ones."""
    with tempfile.TemporaryDirectory() as folder:
        lock = SoftFileLease(Path(folder) / LOCK, lease_duration=LEASE)
        with lock:
            return lock.owner.hostname if lock.owner else ""


def _shown(hostname: str) -> str:
    return hostname.partition("?pidns-")[0]


def _give_up(loss: LeaseCompromise) -> None:
    """End this process if another one took its folder over, because two writers would mix their results."""
    owner = SoftFileLease(loss.lock_file, lease_duration=LEASE).owner
    if owner is not None and owner.token != loss.token:  # not if a backup or a sync program has rewritten the lock
        log0(
            f"error: another process has taken over {Path(loss.lock_file).parent}, because this one did not renew its "
            "lock in time"
        )
        os._exit(1)


def is_unused(folder: Path, leftovers: Collection[str] = ()) -> bool:
    """Return whether there is nothing in a folder but what a killed process leaves before it has written anything.

    Args:
        folder: existing folder.
        leftovers: names of more files and folders that do not count.
    """
    return all(entry.name in (LOCK, UNFINISHED, *leftovers) for entry in folder.iterdir())


def new_folder(name: str | Path, parameter: str = "output", leftovers: Collection[str] = ()) -> Path:
    """Return the path of a new or empty folder after checking that it can be written, without creating it.

    Args:
        name: path of the folder; ~ is the home folder.
        parameter: name of the user's parameter, for the error.
        leftovers: names of files that do not count.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        raise InputError(f"`{parameter}={path}` is a file: choose a new folder")
    if path.is_dir() and not is_unused(path, leftovers):
        raise _TakenError(f"`{parameter}={path}` is not empty: choose a new folder, or empty this one yourself")
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    require_writable(parent, f"`{parameter}={path}`")
    return path
