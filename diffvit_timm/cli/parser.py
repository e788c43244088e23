"""A command line and its YAML presets, as one configuration."""

import dataclasses
import sys
from pathlib import Path
from typing import TypeVar

import tyro
import yaml

from ..errors import InputError

__all__ = ["parse_config"]

ConfigT = TypeVar("ConfigT")


def _preset_arguments(path: str, flags: set[str]) -> list[str]:
    """A YAML preset as command-line arguments, so that one parser checks both; `flags` take no value."""
    try:
        preset = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(preset, dict):
        raise InputError(f"--config {path} is not a mapping of options to values")
    arguments = []
    for name, value in preset.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool) and name in flags:
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        if isinstance(value, bool):  # YAML reads the words yes and no so
            value = "yes" if value else "no"
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{flag}", *map(str, values)]
    return arguments


def parse_config(config_type: type[ConfigT], argv: list[str] | None = None, description: str = "") -> ConfigT:
    """The configuration from a command line; `--config FILE` reads a YAML preset, which the other options override.

    Raises:
        InputError: a preset that cannot be read, or a number out of range.
        SystemExit: `--help` (0), or arguments that do not parse (2).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise InputError("--config needs the path of a YAML file")
        flags = {field.name for field in dataclasses.fields(config_type) if field.type is bool}  # type: ignore[arg-type]
        argv = _preset_arguments(argv[at + 1], flags) + argv[:at] + argv[at + 2 :]
    return tyro.cli(config_type, args=argv, description=description)
