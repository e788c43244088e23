"""The edge of a command: its result on stdout, its errors on stderr, its exit code."""

import contextlib
import errno
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from ..console import is_main, say
from ..errors import InputError

__all__ = ["one_line_errors", "run"]


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input, or a full disk, is one line on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        if not is_main():
            time.sleep(5)  # what stops all ranks is the main one's to say, and the launcher then ends the others
        _stop(str(error).rpartition("InputError: ")[-1])  # a loader's worker wraps the error in its own traceback
    except KeyboardInterrupt:
        say("stopped by Ctrl-C")
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _stop(f"{error}: free some space and start again")


def _stop(cause: str) -> NoReturn:
    print("error: " + " ".join(cause.split()), file=sys.stderr, flush=True)
    sys.exit(2)


def run(main: Callable[[], dict]) -> None:
    """Run a recipe: its result is stdout's last line, as JSON; bad input as in `one_line_errors`."""
    with one_line_errors():
        result = main()
    if is_main():
        print(json.dumps(result), flush=True)
