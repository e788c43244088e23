"""Checks that all dataclasses of options share."""

from typing import Any

from .errors import InputError

__all__ = ["Options", "named"]


def named(name: str, value: Any) -> str:
    """Write a parameter and its value for the message of an InputError."""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"`{name}={shown}`"


class Options:
    """Base class of frozen dataclasses of options, which check themselves in `__post_init__`."""

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

    def require_default(self, name: str, reason: str) -> None:
        """Check that an option was not given.

        Raises:
            InputError: the option has a value of its own, which has no place here.
        """
        self.require(name, self.is_default(name), f"{reason}: leave it out")
