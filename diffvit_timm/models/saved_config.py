"""The config.json of a saved model. It is untrusted, so it is checked before a network is built."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from timm.models import PretrainedCfg, is_model, split_model_name_tag

from ..console import log0, shortened

__all__ = ["MULTI_LABEL", "SavedLabels", "check_config", "read_label_names"]

MULTI_LABEL = "multi_label_classification"  # the problem_type of transformers for any number of classes per image
PROBLEM_TYPES = ("single_label_classification", MULTI_LABEL)

MAX_FILE_SIZE = 2**24  # bytes
MAX_NUMBER = 10**6  # largest whole number in model_args
MAX_DEPTH = 1000  # largest number of blocks; timm builds per-block lists before the first block
MAX_SIDE = 4096  # largest height and width of the images, in pixels

# Entries of model_args that must be positive whole numbers, or lists of them.
COUNTS = ("depth", "depths", "embed_dim", "img_size", "in_chans", "num_heads", "patch_size")

LIMITS = {"depth": MAX_DEPTH, "depths": MAX_DEPTH, "img_size": MAX_SIDE}

KNOWN_ENTRIES = {field.name for field in dataclasses.fields(PretrainedCfg)} | {"problem_type"}


class SavedLabels(NamedTuple):
    """The labels in a config.json.

    Attributes:
        names: the class names, in the order of the outputs; None if the file has none.
        is_multi_label: whether an image may have any number of the classes.
    """

    names: list[str] | None
    is_multi_label: bool


def check_config(path: Path) -> SavedLabels:
    """Check the entries of a config.json.

    Args:
        path: path of the file.

    Returns:
        The labels of the model.

    Raises:
        ValueError: the first entry that is wrong, its value, and what it must be.
    """
    config = _read_json(path)
    architecture = _entry(config, "architecture", str, "the name of an architecture")
    if not is_model(architecture):
        raise ValueError(
            f"its config.json names the architecture {shortened(architecture)}, which is not known: a newer version of "
            "timm or of diffvit_timm may have it"
        )
    args = _entry(config, "model_args", dict, "a dictionary") if "model_args" in config else {}
    if "pretrained_cfg" in config:
        settings = _entry(config, "pretrained_cfg", dict, "a dictionary")
        if unknown := sorted(settings.keys() - KNOWN_ENTRIES):
            raise ValueError(
                f"its config.json has the unknown entry pretrained_cfg.{shortened(unknown[0])}: a newer version of "
                "timm may know it"
            )
    else:
        settings = config  # timm's older form
    # The entries at the top replace those of pretrained_cfg.
    top = {name: config[name] for name in ("num_classes", "label_names", "problem_type") if name in config}
    settings = {**settings, **top}
    _check_settings(settings)
    _check_arguments(args, settings)
    problem = settings.get("problem_type")
    if problem is not None and problem not in PROBLEM_TYPES:
        raise _wrong("problem_type", problem, f"one of {', '.join(PROBLEM_TYPES)}")
    names = read_label_names(settings.get("label_names", settings.get("labels")), settings.get("num_classes"))
    return SavedLabels(names, problem == MULTI_LABEL)


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_FILE_SIZE:
        raise ValueError(f"its config.json has more than {MAX_FILE_SIZE // 2**20} MiB")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its config.json is nested too deeply") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"its config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"its config.json has a {type(config).__name__} where it needs a dictionary")
    return config


def _entry(config: dict[str, Any], name: str, kind: type, what: str) -> Any:
    """Return an entry of a config, after checking its type."""
    if not isinstance(config.get(name), kind):
        raise _wrong(name, config.get(name), what)
    return config[name]


def _wrong(name: str, value: Any, what: str) -> ValueError:
    return ValueError(f"its config.json has {shortened(name)}={shortened(repr(value))}, which must be {what}")


def _is_whole(value: Any, least: int = 1, most: int = MAX_NUMBER) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _is_input_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_whole(number, most=MAX_SIDE) for number in value)


def _are_numbers(value: Any, least: float, most: float) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_number(number, least, most) for number in value)


SIZES = f"channels, height and width, from 1 to {MAX_SIDE}"
CROP = "a number from 0.1 to 10"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
# The check of each entry that the package reads, and what the entry must be. An entry may also be missing or null.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_classes": (lambda value: _is_whole(value, least=0), f"a whole number from 0 to {MAX_NUMBER:,}"),
    "input_size": (_is_input_size, SIZES),
    "test_input_size": (_is_input_size, SIZES),
    "min_input_size": (_is_input_size, SIZES),
    "mean": (lambda value: _are_numbers(value, -1e4, 1e4), "a list of numbers from -10000 to 10000"),
    "std": (lambda value: _are_numbers(value, 1e-4, 1e4), "a list of numbers from 0.0001 to 10000"),
    "crop_pct": (lambda value: _is_number(value, 0.1, 10), CROP),
    "test_crop_pct": (lambda value: _is_number(value, 0.1, 10), CROP),
    "crop_mode": (lambda value: isinstance(value, str), "a text"),
    "interpolation": (lambda value: value in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
    "fixed_input_size": (lambda value: isinstance(value, bool), "true or false"),
}


def _check_settings(settings: dict[str, Any]) -> None:
    """Check the entries that describe the images and the head."""
    for name, (is_right, what) in CHECKS.items():
        value = settings.get(name)
        if value is not None and not is_right(value):
            raise _wrong(name, value, what)


def _check_arguments(args: dict[str, Any], settings: dict[str, Any]) -> None:
    """Check the arguments of the architecture, as far as their names and sizes tell."""
    for name, value in args.items():
        if not _is_moderate(value):
            raise _wrong(name, value, f"finite, and whole numbers at most {MAX_NUMBER:,} in size")
        values = value if isinstance(value, list) else [value]
        if name in COUNTS and value is not None and not (values and all(map(_is_whole, values))):
            raise _wrong(name, value, "a positive whole number")
        if name in LIMITS and value is not None and max(values) > LIMITS[name]:
            raise _wrong(name, value, f"at most {LIMITS[name]:,}")
    classes = args.get("num_classes")
    # If the two differ, timm loads non-strictly, and a file with missing tensors would load silently.
    if classes is not None and classes != settings.get("num_classes", classes):
        raise _wrong("model_args.num_classes", classes, f"equal to num_classes={settings['num_classes']}")
    base = args.get("base")
    if base is not None and not (isinstance(base, str) and is_model(split_model_name_tag(base)[0])):
        raise _wrong("base", base, "the name of an architecture of timm")


def _is_moderate(value: Any) -> bool:
    """Return whether all numbers in a value are finite, and the whole ones at most MAX_NUMBER."""
    if isinstance(value, dict):
        return all(map(_is_moderate, value.values()))
    if isinstance(value, list):
        return all(map(_is_moderate, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) <= MAX_NUMBER


def read_label_names(value: Any, num_classes: int | None) -> list[str] | None:
    """Read class names: a list, or a dictionary from the index of each class, as a string, to its name.

    Args:
        value: the entry label_names of a config, or None.
        num_classes: number of classes; None if it is not known, and 0 for a network without a head.

    Returns:
        One name per class; None without names, and if there is not one for each class, which is logged.

    Raises:
        ValueError: a value of another type.
    """
    if value in (None, [], {}):
        return None
    names = value
    if isinstance(value, dict):
        names = [value.get(str(index)) for index in range(len(value))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | None) for name in names):
        raise _wrong("label_names", value, "a list of names, or a dictionary from each index to its name")
    if None in names or (num_classes and len(names) != num_classes):
        log0(f"the label_names of config.json are not used: {len(names)} of them for {num_classes} classes, or gaps")
        return None
    return list(map(str, names))
