"""Console output for people, on stderr: log lines, and progress as a rich bar (terminal) or as a line (log file)."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

# Environment variables with the rank of a process: of torchrun and accelerate, and of the MPI launchers.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SECONDS_BETWEEN_LINES = 10.0  # between two progress lines in a log file

ItemT = TypeVar("ItemT")


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show progress while this context is open.

    The context gets a function that counts one step and shows a short text. An empty text keeps the previous one.

    Args:
        label: description in front of the count.
        total: number of steps.
    """
    from rich.console import Console  # not above: the core of the package does not need rich
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    bar = Progress(*columns, console=console, transient=True) if is_main() and console.is_terminal else None
    task = bar.add_task(label, total=total, text="") if bar else None
    done, last_line, shown = 0, time.monotonic(), ""

    def advance(text: str) -> None:
        nonlocal done, last_line, shown
        done, shown = done + 1, text or shown
        if bar is not None and task is not None:
            bar.update(task, completed=done, text=shown)
        elif time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            log0(f"{label} {done}/{total} {shown}")

    with bar or contextlib.nullcontext():
        yield advance


def track(items: Iterable[ItemT], label: str, total: int) -> Iterator[ItemT]:
    """Yield the items and show their progress. The other arguments are those of `progress`."""
    with progress(label, total) as advance:
        for item in items:
            yield item
            advance("")


def log0(line: str) -> None:
    """Print a line on stderr in the main process only. The last line on stdout is kept for the result."""
    if is_main():
        print("\n".join(map(printable, line.split("\n"))), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return a text with every control character and invisible character as its escape, such as \\x1b or \\n.

    A terminal obeys control characters, and the names of classes and files can contain them. The invisible joiners of
    several scripts stay.
    """
    joiners = "\u200c\u200d"
    return "".join(
        char if char.isprintable() or char in joiners else char.encode("unicode_escape").decode() for char in text
    )


def discard(stream: TextIO) -> None:
    """Redirect a stream to os.devnull; otherwise Python's flush at exit would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: '1 image', '2 images', '1,000 images', '2 classes'."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def is_main() -> bool:
    """Return whether this is the main process: the only one, or rank 0 of those that a launcher started."""
    return all(int(os.environ.get(name, "0")) == 0 for name in RANKS)


def shortened(text: str, length: int = 80) -> str:
    """Return a text of a stranger on one line, without control characters, and cut to a length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= length else line[:length] + " ..."
