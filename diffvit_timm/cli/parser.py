"""Parse a command line, with its presets, into a dataclass of options."""

import contextlib
import difflib
import importlib.resources
import io
import itertools
import sys
import typing
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from ..errors import InputError
from .flags import option_fields, positional_names

__all__ = ["parse_options", "preset_names"]

PRESETS = importlib.resources.files(__package__) / "presets"

# Names that other programs have for our options.
SYNONYMS = {
    "amp": "precision", "arch": "model", "batch": "batch-size", "bs": "batch-size", "checkpoint": "resume",
    "data": "dataset", "data-dir": "dataset", "dataset-name": "dataset", "dropout": "drop-path",
    "gradient-accumulation-steps": "grad-accum", "image-size": "img-size", "input-size": "img-size",
    "label-smooth": "label-smoothing", "learning-rate": "lr", "mixed-precision": "precision", "num-epochs": "epochs",
    "num-workers": "workers", "optimizer": "opt", "out": "output", "output-dir": "output", "preset": "config",
    "smoothing": "label-smoothing", "steps": "max-steps", "wd": "weight-decay",
}  # fmt: skip

OptionsT = TypeVar("OptionsT")


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in PRESETS.iterdir() if path.name.endswith(".yaml"))


def parse_options(
    options_type: type[OptionsT], argv: list[str] | None = None, description: str = "", prog: str | None = None
) -> OptionsT:
    """Parse a command line. `--config NAME_OR_FILE` reads a preset, whose values the other options override.

    Args:
        options_type: dataclass, which may contain others: their options have no prefix.
        argv: arguments; None: those of this process.
        description: text above the options in the help.
        prog: name of the command.

    Raises:
        InputError: an unknown or missing option, a preset that cannot be read, or a value that an option refuses.
        SystemExit: help (0).
    """
    argv = [part for word in (sys.argv[1:] if argv is None else argv) for part in _split_equals(word)]
    fields = option_fields(options_type)
    _check_lists(argv, fields)
    argv = _expand_presets(argv, fields, prog or "this command")
    _check_flags(argv, fields, positional_names(options_type), prog or "this command")
    return _call_tyro(options_type, argv, description, prog)


def _split_equals(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]


def _call_tyro(options_type: type[OptionsT], argv: list[str], description: str, prog: str | None) -> OptionsT:
    """Parse by tyro. Its errors, and those of the dataclasses, become an InputError; tyro would print a box."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                options_type, args=argv, description=description, prog=prog, config=(tyro.conf.OmitArgPrefixes,)
            )
    except SystemExit as exit:
        cause: BaseException | None = exit
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        if exit.code:
            raise InputError(_one_line(printed.getvalue(), prog or "this command")) from None
        print(printed.getvalue(), end="", file=sys.stderr)
        raise


def _one_line(box: str, prog: str) -> str:
    """Turn an error that tyro has written into a box into one line."""
    lines = [line.rstrip(" │") for line in box.splitlines()[1:]]  # without the title
    rules = [index for index, line in enumerate(lines) if line and not line.strip(" │─╰╯-")]
    start = 1 if 0 in rules else 0
    lines = lines[start : next((index for index in rules if index), len(lines))]  # without the help
    first, *rest = lines
    if "Missing from" in first:
        indents = [len(line) - len(line.lstrip(" │")) for line in rest]  # an explanation is indented more than its name
        names = [
            line.strip(" │").split()[0] for line, indent in zip(rest, indents, strict=True) if indent == min(indents)
        ]
        cause = f"{prog} needs {' and '.join(names)}"
    else:
        cause = " ".join(line.strip(" │") for line in lines).removeprefix("Error parsing ").rstrip(".")
        cause = cause[:1].lower() + cause[1:]
    return f"{cause}: {prog} --help explains the options"


def _check_lists(argv: list[str], fields: dict[str, Any]) -> None:
    """Refuse options that take several values but are given none; tyro reads them as an empty list."""
    for word, following in itertools.pairwise([*argv, "--"]):
        kind = fields.get(word.removeprefix("--").replace("-", "_")) if word.startswith("--") else None
        if typing.get_origin(kind) is tuple and following.startswith("--"):
            raise InputError(f"{word} needs at least one value")


def _check_flags(argv: list[str], fields: dict[str, Any], positionals: list[str], prog: str) -> None:
    """Refuse unknown options, and name the option that was probably meant."""
    known = {name.replace("_", "-") for name in fields if name not in positionals} | {"config", "help"}
    known |= {f"no-{name}" for name in known if fields.get(name.replace("-", "_")) is bool}
    for word in argv:
        name = word.removeprefix("--").replace("_", "-")
        if word.startswith("--") and name and name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
            meant = SYNONYMS[name] if SYNONYMS.get(name) in known else close[0] if close else None
            advice = f"did you mean --{meant}?" if meant else f"{prog} --help lists its options"
            raise InputError(f"--{name} is not an option of {prog}: {advice}")


def _expand_presets(argv: list[str], fields: dict[str, Any], prog: str) -> list[str]:
    """Replace every --config by the options of its preset, in front of all other options."""
    preset_argv, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            name = next(words, None)
            if name is None or name.startswith("--"):
                raise InputError(f"--config needs a preset ({', '.join(preset_names())}) or the path of a YAML file")
            preset_argv += _preset_arguments(name, fields, prog)
        elif word == "--demo" and "demo" in fields:
            preset_argv += _preset_arguments("demo", fields, prog)
        else:
            rest.append(word)
    return preset_argv + rest


def _preset_arguments(name: str, fields: dict[str, Any], prog: str) -> list[str]:
    """Return the options of a preset as arguments, so that one parser checks presets and command lines alike."""
    arguments = []
    for option, value in _read_preset(name).items():
        option = option.replace("-", "_")
        if option == "config":  # a preset may start from another one
            arguments += _preset_arguments(str(value), fields, prog)
            continue
        if option not in fields:
            close = difflib.get_close_matches(option, fields, n=1)
            advice = f": did you mean {close[0]}?" if close else ""
            raise InputError(f"--config {name}: {option} is not an option of {prog}{advice}")
        if value is None:
            continue
        flag = option.replace("_", "-")
        if isinstance(value, bool) and fields[option] is bool:
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        if isinstance(value, bool):  # YAML reads the words yes and no as truth values
            value = "yes" if value else "no"
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{flag}", *map(str, values)]
    return arguments


def _read_preset(name: str) -> dict:
    path: Traversable = PRESETS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name).expanduser()
        if not path.is_file():
            raise InputError(
                f"--config {name} is neither a preset ({', '.join(preset_names())}) nor a YAML file: check the name"
            )
    try:
        preset = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {name} cannot be read: {error}") from error
    if not isinstance(preset, dict):
        raise InputError(f"--config {name} is not a mapping of options to values")
    return preset
