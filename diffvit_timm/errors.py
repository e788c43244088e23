"""The errors for bad input."""

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["DivergedError", "InputError", "require_at_least", "require_device", "require_files"]


class InputError(ValueError):
    """Bad input, which the user can fix: one sentence that names the parameter, its value and the fix.

    Parameters stand in backquotes, as `name=value` or `name`: "`lr=0` must be above 0". The console command rewrites
    them as its own flags (cli/flags.py).
    """

    @property
    def parameter(self) -> str | None:
        """The first parameter that the message names."""
        match = re.search(r"`(\w+)(=[^`]*)?`", str(self))
        return match[1] if match else None


class DivergedError(InputError):
    """The loss became NaN or infinite. A study goes on without this training."""


def require_at_least(least: int, **parameters: int) -> None:
    """Check that every parameter is at least `least`.

    Raises:
        InputError: the first parameter that is smaller.
    """
    for name, value in parameters.items():
        if value < least:
            raise InputError(f"`{name}={value}` must be at least {least}")


def require_files(parameter: str, paths: Sequence[Path]) -> None:
    """Check that there is at least one path, and that each is a file.

    Raises:
        InputError: no path, or one that is not a file.
    """
    if not paths:
        raise InputError(f"`{parameter}` is empty: name at least one file")
    for path in paths:
        if not path.is_file():
            raise InputError(f"`{parameter}={path}` is not a file: check the path")


def require_device(device: str) -> None:
    """Check that torch can use a device on this machine.

    Raises:
        InputError: with torch's own reason.
    """
    import torch  # not above: parsing a configuration does not need torch

    try:
        torch.zeros(1, device=device).item()  # reading a value fails on the meta device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"`device={device}` cannot be used: {str(error).splitlines()[0]}") from error
