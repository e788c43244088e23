"""The one place that knows how parameters of the library are called on the command line."""

import dataclasses
import re
import typing
from collections.abc import Collection
from typing import Any

import tyro

__all__ = ["command_line_text", "option_fields", "positional_names"]

POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1]  # the annotation of an option without a flag


def option_fields(options_type: type) -> dict[str, Any]:
    """Return the type of every option by its name, also of options in nested dataclasses."""
    fields: dict[str, Any] = {}
    for name, kind in _hints(options_type).items():
        kind = getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind  # without its annotations
        fields |= option_fields(kind) if dataclasses.is_dataclass(kind) else {name: kind}  # type: ignore[arg-type]
    return fields


def positional_names(options_type: type) -> list[str]:
    """Return the names of the options that are given by their position."""
    return [name for name, kind in _hints(options_type).items() if POSITIONAL in getattr(kind, "__metadata__", ())]


def _hints(options_type: type) -> dict[str, Any]:
    hints = typing.get_type_hints(options_type, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(options_type)}


def command_line_text(message: str, options: Collection[str], positionals: Collection[str] = ()) -> str:
    """Rewrite the parameters of a message as flags.

    Args:
        message: text with parameters in backquotes, `name=value` or `name`, as in `InputError`.
        options: names of the command's options. Other parameters only lose their backquotes.
        positionals: names of the options that are given by their position; they are written in capitals.

    Returns:
        The text with "--name value", "--name", "--no-name" or "NAME value".
    """

    def rewrite(match: re.Match) -> str:
        name, value = match[1], match[2]
        flag = "--" + name.replace("_", "-")
        if name in positionals:
            return name.upper() if value is None else f"{name.upper()} {value}"
        if name not in options:
            return match[0].strip("`")
        if value in (None, "True"):
            return flag
        return flag.replace("--", "--no-", 1) if value == "False" else f"{flag} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", rewrite, message)
