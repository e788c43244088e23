"""Parse a command line, with its presets, into a dataclass of options."""

import contextlib
import difflib
import importlib.resources
import io
import itertools
import math
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from ..console import printable
from ..errors import InputError
from ..models.pretrained import brings_weights
from ..options import check_value, merged_by_name
from .flags import option_fields, positional_names

__all__ = [
    "keep_weights",
    "mapping_arguments",
    "parse_options",
    "preset_names",
    "presets_of_folder",
    "read_mapping",
]

# Words for null and for booleans in a preset.
NULL_WORDS = ("", "~", "null", "Null", "NULL")
NUMERIC = {int, float, tuple, types.UnionType, type(None), ...}  # parts of the annotations of numeric options
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

PRESETS = importlib.resources.files(__package__) / "presets"

# Names that other programs have for our options.
SYNONYMS = {
    "amp": "precision", "arch": "model", "batch": "batch-size", "bs": "batch-size", "checkpoint": "resume",
    "data": "dataset", "data-dir": "dataset", "dataset-name": "dataset", "drop": "dropout",
    "gradient-accumulation-steps": "grad-accum", "image-size": "img-size", "input-size": "img-size",
    "label-smooth": "label-smoothing", "learning-rate": "lr", "mixed-precision": "precision", "num-epochs": "epochs",
    "num-workers": "workers", "optimizer": "opt", "out": "output", "output-dir": "output", "preset": "config",
    "smoothing": "label-smoothing", "steps": "max-steps", "wd": "weight-decay",
}  # fmt: skip

# Options of other programs for which there is a command here.
COMMANDS_INSTEAD = {
    "probe": "compare probes", "knn": "compare probes", "linear-probe": "compare probes", "lr-sweep": "study rates",
    "lr-find": "study rates", "find-lr": "study rates", "lr-finder": "study rates",
}  # fmt: skip

OptionsT = TypeVar("OptionsT")


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package; those in a folder are named FOLDER/NAME."""
    return sorted(_presets_below(PRESETS))


def presets_of_folder(name: str) -> list[str]:
    """Return the names of the presets in a folder of presets that comes with the package; none for another name."""
    return [preset for preset in preset_names() if preset.startswith(f"{name}/")]


def _preset_choices() -> str:
    """Return the names of all presets for an error; a folder of presets is named once, as FOLDER/."""
    names = (name.partition("/") for name in preset_names())
    return ", ".join(dict.fromkeys(f"{first}{slash}" for first, slash, _ in names))


def _presets_below(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _presets_below(path, f"{prefix}{path.name}/")
        elif path.name.endswith(".yaml"):
            yield prefix + path.name.removesuffix(".yaml")


def parse_options(
    options_type: type[OptionsT], argv: list[str] | None = None, description: str = "", prog: str | None = None
) -> OptionsT:
    """Parse a command line. `--config NAME_OR_FILE` reads a preset, whose values the other options override.
    An entry of `--model-kwargs` overrides only the entry with the same name.

    Args:
        options_type: dataclass, which may contain others: their options have no prefix.
        argv: arguments; None: those of this process.
        description: text above the options in the help.
        prog: name of the command.

    Raises:
        InputError: an unknown or missing option, a preset that cannot be read, or a value that an option refuses.
        SystemExit: help (0).
    """
    prog = prog or "this command"
    argv = [part for word in (sys.argv[1:] if argv is None else argv) for part in _split_equals(word)]
    fields = option_fields(options_type)
    _check_values(argv, fields)
    argv = _expand_presets([*_options_of_run(argv, fields), *argv], fields, prog)
    _check_flags(argv, fields, positional_names(options_type), prog)
    return _call_tyro(options_type, argv, description, prog)


def _split_equals(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]


def _call_tyro(options_type: type[OptionsT], argv: list[str], description: str, prog: str) -> OptionsT:
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
            raise InputError(_one_line(printed.getvalue(), prog)) from None
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


def _check_values(words: list[str], fields: dict[str, Any], in_file: bool = False) -> None:
    """Refuse options without values, unusable texts, and values of numeric options that are no numbers."""
    flag, count = "", 0
    for word in [*words, "--"]:
        kind = fields.get(flag.removeprefix("--").replace("-", "_"))
        if word.startswith("--"):
            if flag and not count and typing.get_origin(kind) is tuple:
                raise InputError(f"{flag} needs at least one value")  # tyro reads an empty list
            flag, count = word, 0
            continue
        count += 1
        check_value(flag.removeprefix("--").replace("-", "_") or "arguments", word)
        if count <= _value_count(kind):  # words after the values of an option are positional arguments
            _check_number(flag, word, _types(kind), in_file)


def _value_count(kind: Any) -> float:
    """Return the largest number of values of an option."""
    counts = [_value_count(part) for part in typing.get_args(kind)]
    if typing.get_origin(kind) is tuple:
        return math.inf if ... in typing.get_args(kind) else len(counts)
    return max(counts, default=1) if isinstance(kind, types.UnionType) else 1


def _check_number(flag: str, word: str, kinds: set[Any], in_file: bool) -> None:
    """Refuse a word that is no number as a value of a numeric option; also digits of other scripts, which int reads."""
    if not kinds & {int, float}:
        return
    if not word.isascii():
        raise InputError(f"{flag} {word}: write numbers with the digits 0 to 9")
    if kinds - NUMERIC or (word == "None" and type(None) in kinds):
        return
    number: type = float if float in kinds else int
    try:
        number(word)
    except ValueError:
        name, example = ("number", "0.001") if number is float else ("whole number", "16")
        if tuple not in kinds:
            wanted = f"a {name}, such as {example}"
        else:
            wanted = f"a list of {name}s, such as [{example}]" if in_file else f"{name}s, with spaces between them"
        raise InputError(f"{flag} {word}: write {wanted}") from None


def _types(kind: Any) -> set[Any]:
    """Return the types that an annotation names, such as tuple and int for tuple[int, ...] | None."""
    return {typing.get_origin(kind) or kind}.union(*map(_types, typing.get_args(kind)))


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
            if name in COMMANDS_INSTEAD:
                advice = f"diffvit {COMMANDS_INSTEAD[name]} does this"
            raise InputError(f"--{printable(name)} is not an option of {prog}: {advice}")


def _options_of_run(argv: list[str], fields: dict[str, Any]) -> list[str]:
    """Return the --config of the run that `--resume FOLDER` continues, if the command line has no preset of its own."""
    if "resume" not in fields or {"--config", "--demo"} & set(argv) or "--resume" not in argv[:-1]:
        return []
    given = Path(argv[len(argv) - 1 - argv[::-1].index("--resume") + 1]).expanduser()  # the last one counts
    folder = given.parent.parent if given.parent.name == "checkpoints" else given
    file = folder / "config.yaml"
    # A run that was moved is no longer at its `output`.
    return ["--config", str(file), "--output", "auto"] if file.is_file() else []


def _expand_presets(argv: list[str], fields: dict[str, Any], prog: str) -> list[str]:
    """Replace every --config by the options of its preset, in front of all other options."""
    preset_argv, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            name = next(words, None)
            if name is None or name.startswith("--"):
                raise InputError(f"--config needs a preset ({_preset_choices()}) or the path of a YAML file")
            preset_argv += _preset_arguments(name, fields, prog)
        elif word == "--demo" and "demo" in fields:
            preset_argv += _preset_arguments("demo", fields, prog)
        else:
            rest.append(word)
    argv = keep_weights(preset_argv, rest)
    return _merge_model_kwargs(argv) if "model_kwargs" in fields else argv


def _merge_model_kwargs(argv: list[str]) -> list[str]:
    """Join every --model-kwargs into one. A later entry replaces an earlier one with the same name.

    So a preset, or the command line, changes one argument of the model and keeps the others. An empty list, which only
    a file can have, removes the entries before it.
    """
    others: list[str] = []
    entries: list[str] = []
    flag = ""
    for word, following in itertools.pairwise([*argv, "--"]):
        if word.startswith("--"):
            flag = word.replace("_", "-")
        if flag != "--model-kwargs":
            others.append(word)
        elif not word.startswith("--"):
            entries.append(word)
        elif following.startswith("--"):
            entries.clear()
    return [*others, "--model-kwargs", *merged_by_name(entries)] if entries else others


def keep_weights(preset_argv: list[str], rest: Sequence[str] = ()) -> list[str]:
    """Return all options, without the `pretrained: false` of a preset whose model is replaced by one with own weights.

    A folder or a repository on the Hub always brings its weights. Beside such a model, a --no-pretrained of the same
    file or of the command line stays, and is an error of `check_model`.

    Args:
        preset_argv: options of presets; those of a file follow those of the preset that it starts from.
        rest: options of the command line.
    """
    argv = [*preset_argv, *rest]
    model = max((place for place, word in enumerate(argv[:-1]) if word == "--model"), default=0)  # the last one counts
    earlier = min(model, len(preset_argv))
    if "--no-pretrained" not in argv[:earlier] or not brings_weights(argv[model + 1]):
        return argv
    return [word for word in argv[:earlier] if word != "--no-pretrained"] + argv[earlier:]


def _preset_arguments(name: str, fields: dict[str, Any], prog: str, above: tuple[str, ...] = ()) -> list[str]:
    """Return the options of a preset as arguments, so that one parser checks presets and command lines alike.

    Args:
        name: name or path of the preset.
        fields: type of every option of the command.
        prog: name of the command.
        above: the presets that start from this one.
    """
    if name in above:
        raise InputError(f"--config {name} starts from itself: change its option config")
    return mapping_arguments(_read_preset(name), f"--config {name}", fields, prog, (*above, name))


def mapping_arguments(
    options: dict[str, Any], source: str, fields: dict[str, Any], prog: str, above: tuple[str, ...] = ()
) -> list[str]:
    """Return options of a YAML file as arguments.

    Args:
        options: option -> value as `read_mapping` reads it: a text, or a list of texts.
        source: where the options were read, for the errors.
        fields: type of every option of the command.
        prog: name of the command.
        above: the presets that start from this one.

    Raises:
        InputError: an unknown option, or a value that its option cannot have.
    """
    arguments = []
    for key, value in sorted(options.items(), key=lambda item: item[0] == "pretrained"):  # after the model of the file
        option = printable(key).replace("-", "_")
        given, flag = f"{source}: {option}", "--" + option.replace("_", "-")
        if option != "config" and option not in fields:
            close = difflib.get_close_matches(option, fields, n=1)
            advice = f": did you mean {close[0]}?" if close else ""
            raise InputError(f"{given} is not an option of {prog}{advice}")
        kind = fields.get(option)
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in values):
            raise InputError(f"{given} must be one value or a list of values")
        if isinstance(value, list) and tuple not in _types(kind):
            raise InputError(f"{given} takes one value, not a list")
        if value in NULL_WORDS:
            continue
        if values:  # the config.yaml of a run has empty lists
            _check_values([flag, *values], fields, in_file=True)
        if option == "config":  # a preset may start from another one
            arguments += _preset_arguments(value, fields, prog, above)
        elif kind is bool:
            if value.lower() not in BOOLEANS:
                raise InputError(f"{given} must be true or false, not {value}")
            arguments.append(flag if BOOLEANS[value.lower()] else flag.replace("--", "--no-", 1))
        else:
            arguments += [flag, *values]
    return arguments


def _read_preset(name: str) -> dict[str, Any]:
    """Read a preset, as `read_mapping`."""
    check_value("config", name)
    path: Traversable = PRESETS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name).expanduser()
        if not path.is_file():
            own = presets_of_folder(name.rstrip("/"))
            close = own or difflib.get_close_matches(name, preset_names(), n=1)
            advice = f"did you mean {' or '.join(close)}?" if close else "check the name"
            raise InputError(f"--config {name} is neither a preset ({_preset_choices()}) nor a YAML file: {advice}")
    return read_mapping(path, f"--config {name}")


def read_mapping(path: Traversable, source: str) -> dict[str, Any]:
    """Read a YAML file without its types: scalars are texts, as on a command line.

    Args:
        path: file to read.
        source: how the user named it, for the errors.

    Raises:
        InputError: a file that cannot be read, or that is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{source} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{source} is not a mapping of options to values")
    return content
