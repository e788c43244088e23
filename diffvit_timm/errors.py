"""The errors for bad input."""

from collections.abc import Sequence
from pathlib import Path


class InputError(Exception):
    """Input that the user can mend: one line that names the option, the value and the fix."""


class DivergedError(InputError):
    """A loss that became NaN or infinite: of one training, which others may do without."""


def require_at_least(least: int, **options: int) -> None:
    """Refuse a smaller number, naming the option (checkpoint_every is --checkpoint-every).

    Raises:
        InputError: the first that is too small.
    """
    for name, value in options.items():
        if value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")


def require_images(images: Sequence[Path]) -> None:
    """
    Raises:
        InputError: no image, or one that is not a file.
    """
    if not images:
        raise InputError("no images: name at least one file")
    for path in images:
        if not path.is_file():
            raise InputError(f"image {path} is not a file: check the path")


def require_device(device: str) -> None:
    """Refuse a --device that torch has not here.

    Raises:
        InputError: with torch's own reason.
    """
    import torch  # not above: errors are for those too who wait for no torch

    try:
        torch.zeros(1, device=device).item()  # which the meta device has none of
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: {str(error).splitlines()[0]}") from error
