"""The command that pushes a run again after its push has failed."""

import contextlib
import shlex
from collections.abc import Iterator

from ..errors import InputError

__all__ = ["push_command"]


@contextlib.contextmanager
def push_command() -> Iterator[None]:
    """Add the command to the error of a push that fails within this context.

    Raises:
        InputError: the error of the push, which ends with the command.
    """
    from ..hub.publishing import PushError  # not above: --help does not wait for it

    try:
        yield
    except PushError as error:
        words = ["diffvit", "push", str(error.run), error.repo, *(["--private"] if error.private else [])]
        words += ["--path-in-repo", error.path_in_repo] if error.path_in_repo else []
        raise InputError(f"{error}: {shlex.join(words)}") from error
