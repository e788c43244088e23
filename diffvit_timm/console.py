"""What a recipe prints: a rich bar on a terminal, a plain line every few seconds elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0

ItemT = TypeVar("ItemT")


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that advances by one and shows a short text; an empty one leaves the last.

    Args:
        label: what is counted.
        total: how many.
    """
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
    done, last, shown = 0, time.monotonic(), ""

    def advance(text: str) -> None:
        nonlocal done, last, shown
        done, shown = done + 1, text or shown
        if bar is not None and task is not None:
            bar.update(task, completed=done, text=shown)
        elif time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{label} {done}/{total} {shown}")

    with bar or contextlib.nullcontext():
        yield advance


def track(items: Iterable[ItemT], label: str, total: int) -> Iterator[ItemT]:
    """The items, with their progress shown; arguments as in `progress`."""
    with progress(label, total) as advance:
        for item in items:
            yield item
            advance("")


def say(line: str) -> None:
    """A line for people, by the main process, on stderr: stdout's last line is the result."""
    if is_main():
        print(line, file=sys.stderr, flush=True)


def is_main() -> bool:
    """Whether this is the only process, or the first of those that a launcher has started."""
    return int(os.environ.get("RANK", "0")) == 0
