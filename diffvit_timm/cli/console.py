"""The edges of a command: its result on stdout, its errors on stderr, its exit code."""

import contextlib
import errno
import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn, TextIO, TypeVar

from ..console import discard, is_main, log0, printable
from ..errors import InputError
from .env_file import read_env_file
from .flags import command_line_text, option_fields, positional_names
from .parser import parse_options

__all__ = ["one_line_errors", "rounded", "run"]

DIGITS = 5  # significant digits of the numbers in a printed result

OptionsT = TypeVar("OptionsT")


def run(
    options_type: type[OptionsT],
    main: Callable[[OptionsT], dict | None],
    argv: list[str] | None = None,
    description: str = "",
    prog: str | None = None,
) -> None:
    """Run a command: parse its options, call it, and print its result as JSON on the last line of stdout.

    Args:
        options_type: dataclass of the options.
        main: function of the options; it returns the result, or None if it printed everything itself.
        argv: arguments; None: those of this process.
        description: text above the options in the help.
        prog: name of the command.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that stdout cannot encode are printed as escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    with (
        contextlib.redirect_stderr(_FailSafeStream(sys.stderr)),
        one_line_errors(option_fields(options_type), positional_names(options_type)),
    ):
        read_env_file()
        result = main(parse_options(options_type, argv, description, prog))
        if result is not None and is_main():
            print(json.dumps(rounded(result)), flush=True)


class _FailSafeStream(io.TextIOBase):
    """Writes to another stream as long as that works: a log that nobody can read must not end a training.

    The terminal may have been closed, the pipe's reader may have gone, or the disk of the log file may be full.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno != errno.ENOSPC:  # a disk may have space again
                discard(self.stream)

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


@contextlib.contextmanager
def one_line_errors(options: Collection[str] = (), positionals: Collection[str] = ()) -> Iterator[None]:
    """Turn bad input and a full disk into one line on stderr and exit code 2.

    Args:
        options, positionals: names of the command's options, as in `command_line_text`.
    """
    try:
        yield
    except InputError as error:
        if not is_main():
            time.sleep(5)  # the main process reports what stops all of them, and then the launcher ends the others
        text = str(error).rpartition("InputError: ")[-1]  # a worker of a DataLoader puts its traceback in front
        _stop(command_line_text(text, options, positionals))
    except (RuntimeError, MemoryError) as error:
        if (cause := _lack_of_memory(error)) is None:
            raise
        _stop(cause)
    except KeyboardInterrupt:
        log0("stopped by Ctrl-C")
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of stdout has gone, as in `diffvit train --help | head`
        discard(sys.stdout)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _stop(f"{error}: free some space and start again")


def _lack_of_memory(error: Exception) -> str | None:
    """Return the cause and the fix if a device or a process has run out of memory, None for another error.

    PyTorch has no class of its own for the memory of a CPU or for a worker that was killed.
    """
    text = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
    if re.search(r"DataLoader worker \(pid", str(error)):  # an error within a worker has other words
        return (
            f"a process that loads images died ({text}): the memory may be too small for it, or the shared memory (in "
            "a container: docker run --shm-size=2g); use fewer workers or a smaller batch size"
        )
    if isinstance(error, MemoryError) or re.search(r"can't allocate memory|out of memory", str(error)):
        return f"the memory is too small ({text}): use a smaller batch size, smaller images or a smaller network"
    return None


def _stop(cause: str) -> NoReturn:
    print("error: " + printable(" ".join(cause.split())), file=sys.stderr, flush=True)
    sys.exit(2)


def rounded(value: Any) -> Any:
    """Round every float in a result to five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
