"""Checks that all dataclasses of options share."""

import dataclasses
import math
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .console import printable
from .errors import InputError

__all__ = ["LIMITS", "CheckedOptions", "check_value", "merged_by_name", "named"]

LARGEST = 10**9  # default upper limit
# Lower limits of options that allocate memory, or set a number of processes or steps.
LIMITS = {
    "batch_size": 65_536, "branch_dims": 65_536, "calibration_images": 100_000, "depth": 1_000, "distill": 10_000,
    "embed_dim": 65_536, "epochs": 1_000_000, "images": 100_000, "img_size": 8_192, "img_sizes": 8_192, "lora": 1_024,
    "progressive_sizes": 8_192, "repeated_augmentation": 100, "repeats": 100_000, "report_images": 100_000,
    "rounds": 100_000, "seed": 2**32 - 1, "seeds": 1_000, "shown": 100, "steps": 10_000, "top": 1_000_000,
    "workers": 1_024,
}  # fmt: skip

LONGEST_NAME, LONGEST_PATH = 255, 4_095  # bytes of a file's name and of a path


def named(name: str, value: Any) -> str:
    """Write a parameter and its value for the message of an InputError."""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"`{name}={shown}`"


def merged_by_name(entries: Iterable[str]) -> tuple[str, ...]:
    """Keep the last of the NAME=VALUE entries with the same name; an entry without a value is none of them."""
    return tuple({entry.partition("=")[:2]: entry for entry in entries}.values())


def check_value(name: str, value: Any) -> None:
    """Check that a value can be used at all, whatever the option: a number, a text, a path or a tuple of them.

    Args:
        name: name of the option.
        value: its value; values of other types pass.

    Raises:
        InputError: a number that is not finite or too large; or a text that is empty, has control characters, is longer
            than a path can be, or starts with the ~ of an unknown user.
    """
    if isinstance(value, tuple):
        for item in value:
            check_value(name, item)
    elif isinstance(value, (str, Path)):
        _check_text(name, str(value))
    elif isinstance(value, (int, float)):
        _check_number(name, value)


def _check_number(name: str, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"`{name}={value}` must be a finite number")
    if value > (largest := LIMITS.get(name, LARGEST)):
        raise InputError(f"`{name}={value}` must be at most {largest}")
    if value < -LARGEST:
        raise InputError(f"`{name}={value}` must be at least {-LARGEST}")


def _check_text(name: str, text: str) -> None:
    if not text:
        raise InputError(f"`{name}` is empty: give a value, or leave it out")
    # Control characters, halves of characters (bytes that are not UTF-8), and separators of lines and paragraphs.
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise InputError(f"`{name}={printable(text)}` contains characters that cannot be printed: use another name")
    if len(text.encode()) > LONGEST_PATH or max(len(part.encode()) for part in text.split("/")) > LONGEST_NAME:
        raise InputError(
            f"`{name}={text[:40]}...` is too long: a path has at most {LONGEST_PATH} bytes, and each of its names at "
            f"most {LONGEST_NAME}"
        )
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise InputError(f"`{name}={text}` starts with ~, but there is no such user: write the whole path")


class CheckedOptions:
    """Base class of frozen dataclasses of options.

    They check themselves in `__post_init__`. A subclass with its own rules calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        """Check every value that was given; errors as in `check_value`."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if not self.is_default(field.name):
                check_value(field.name, getattr(self, field.name))

    def is_default(self, name: str) -> bool:
        """Return whether an option has its default value."""
        return getattr(self, name) == type(self).__dataclass_fields__[name].default  # type: ignore[attr-defined]

    def require(self, name: str, holds: bool, rule: str) -> None:
        """Check a rule.

        Raises:
            InputError: the option `name` breaks the rule.
        """
        if not holds:
            raise InputError(f"{named(name, getattr(self, name))} {rule}")

    def require_image_size(self, name: str) -> None:
        """Check that an option is empty, one positive number of pixels, or a height and a width.

        Raises:
            InputError: it is not.
        """
        sizes = getattr(self, name)
        is_size = len(sizes) <= 2 and all(size > 0 for size in sizes)
        self.require(name, is_size, "must be one positive number of pixels, or height and width")

    def require_default(self, name: str, reason: str) -> None:
        """Check that an option was not given.

        Raises:
            InputError: the option has a value of its own, which has no place here.
        """
        self.require(name, self.is_default(name), f"{reason}: leave it out")
