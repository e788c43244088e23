"""Read the YAML file of a study: its arms have the options of `diffvit train`, under the names that presets use."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, get_args

from ..data.config import CLUTTER, SHORT_NAMES, DatasetConfig
from ..errors import InputError
from ..options import check_value
from ..studies.compare.protocol import Arm, Endpoint, Protocol
from ..training.config import TrainConfig
from .flags import command_line_text
from .parser import NULL_WORDS, keep_weights, mapping_arguments, read_mapping
from .training_options import TRAIN_FIELDS, parse_training

__all__ = ["read_protocol"]

REQUIRED = ("title", "train", "arms", "baseline", "rates", "tuning_seeds", "test_seeds")
OPTIONAL = ("endpoint", "margin", "corruption_images")
NUMBER = {"margin": float, "corruption_images": int}

# Options of `diffvit train` that a study sets itself, or that have no place in it.
RESERVED = {
    "lr": "is chosen from `rates`", "seed": "is set by `tuning_seeds` and `test_seeds`",
    "sample_seed": "is the seed of each run", "output": "is set for each run", "resume": "is set for each run",
    "dry_run": "has no place in a study", "eval_only": "has no place in a study",
    "push_to_hub": "has no place in a study", "hub_private": "has no place in a study",
    "path_in_repo": "has no place in a study", "trackers": "has no place in a study",
    "tracker_project": "has no place in a study",
}  # fmt: skip
# All arms see the same validation and test images.
SHARED = (*(field.name for field in dataclasses.fields(DatasetConfig)), "label_noise", "input_noise")


def read_protocol(file: str, dataset: str | None = None) -> Protocol:
    """Read and check the protocol of a study.

    Args:
        file: path of the YAML file.
        dataset: dataset to use instead of that in the file.

    Raises:
        InputError: the file cannot be read, or one of its entries is missing, unknown or wrong.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"`file={file}` is not a file: check the path")
    content = read_mapping(path, f"`file={file}`")
    source = path.name
    _check_names(content, (*REQUIRED, *OPTIONAL), source)
    if missing := [name for name in REQUIRED if name not in content]:
        raise InputError(f"{source} has no {' and no '.join(missing)}: add it")
    shared = _options(content["train"], f"{source}: train")
    if dataset is not None:
        shared |= _dataset_options(shared, dataset)
    arms = content["arms"]
    if not isinstance(arms, dict) or not all(isinstance(name, str) for name in arms):
        raise InputError(f"{source}: arms is not a mapping of names to options")
    rates = _numbers(content["rates"], float, f"{source}: rates")
    parsed = tuple(_arm(name, own, shared, rates, source) for name, own in arms.items())
    _check_presets(parsed, source)
    try:
        return Protocol(
            title=_text(content["title"], f"{source}: title"),
            arms=parsed,
            baseline=_text(content["baseline"], f"{source}: baseline"),
            tuning_seeds=_numbers(content["tuning_seeds"], int, f"{source}: tuning_seeds"),
            test_seeds=_numbers(content["test_seeds"], int, f"{source}: test_seeds"),
            **_optional(content, source),
        )
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(source) else f"{source}: {command_line_text(text, ())}") from error


def _dataset_options(shared: dict[str, Any], dataset: str) -> dict[str, Any]:
    """Return the options of a dataset that replaces that of the file. What the short name of the latter says stays."""
    known = SHORT_NAMES.get(shared.get("dataset", ""), {})
    in_file = known.get("dataset", shared.get("dataset", ""))
    if in_file.endswith(CLUTTER) and not dataset.endswith(CLUTTER):
        dataset += CLUTTER
    others = {name: str(value) for name, value in known.items() if name != "dataset" and name not in shared}
    return {**others, "dataset": dataset}


def _check_presets(arms: tuple[Arm, ...], source: str) -> None:
    """Check what presets have brought into the arms: no option that a study sets, and the same images for all.

    Raises:
        InputError: an arm with such an option.
    """
    defaults, images = TrainConfig.from_flat("-", "-").flat(), arms[0].train.flat() if arms else {}
    for arm in arms:
        given = arm.train.flat()
        for name, reason in RESERVED.items():
            if name not in ("lr", "seed", "sample_seed") and given[name] != defaults[name]:
                raise InputError(
                    f"{source}: arms: {arm.name}: its preset has {name}={given[name]}, which "
                    f"{command_line_text(reason, ())}: use another preset"
                )
        for name in SHARED:
            if given[name] != images[name]:
                raise InputError(
                    f"{source}: arms: {arm.name}: its preset has {name}={given[name]}, but all arms use the same "
                    "images: use another preset, or give the option in train"
                )


def _arm(name: str, own: Any, shared: dict[str, Any], rates: tuple[float, ...], source: str) -> Arm:
    """Return an arm: the shared options, and its own, which replace them."""
    check_value("arms", name)
    source = f"{source}: arms: {name}"
    options = _options({} if isinstance(own, str) and own in NULL_WORDS else own, source, allowed=("rates",))
    if given := next((option for option in options if option in SHARED), None):
        raise InputError(f"{source}: {given} belongs in train: all arms use the same images")
    if "rates" in options:
        rates = _numbers(options.pop("rates"), float, f"{source}: rates")
    kwargs = [pair for part in (shared, options) for pair in _list(part.get("model_kwargs", []))]
    merged = {**shared, **options} | ({"model_kwargs": kwargs} if kwargs else {})  # entries are replaced by name
    if "config" in merged:  # a preset comes first, so that the options of the file replace its own
        merged = {"config": merged.pop("config"), **merged}
    try:
        train = parse_training(keep_weights(mapping_arguments(merged, source, TRAIN_FIELDS, "diffvit train")))
    except InputError as error:
        text = command_line_text(str(error), ())
        raise InputError(text if text.startswith(source) else f"{source}: {text}") from error
    return Arm(name, train, rates)


def _options(content: Any, source: str, allowed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return options of `diffvit train`, with underscores in their names."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{source} is not a mapping of options to values")
    options = {name.replace("-", "_"): value for name, value in content.items()}
    _check_names(options, (*TRAIN_FIELDS, "config", *allowed), source)
    for name, reason in RESERVED.items():
        if name in options:
            raise InputError(f"{source}: {name} {command_line_text(reason, ())}: leave it out")
    return options


def _check_names(content: dict[str, Any], known: tuple[str, ...], source: str) -> None:
    for name in content:
        if name not in known:
            check_value("file", name)
            close = difflib.get_close_matches(name, known, n=1)
            advice = f": did you mean {close[0]}?" if close else ""
            raise InputError(f"{source}: {name} is not a known entry{advice}")


def _optional(content: dict[str, Any], source: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: _numbers(content[name], kind, f"{source}: {name}", single=True)[0]
        for name, kind in NUMBER.items() if name in content
    }  # fmt: skip
    if "endpoint" in content:
        found["endpoint"] = _text(content["endpoint"], f"{source}: endpoint")
        if found["endpoint"] not in get_args(Endpoint):
            raise InputError(f"{source}: endpoint must be one of {', '.join(get_args(Endpoint))}")
    return found


def _text(value: Any, source: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{source} must be a text")
    return value


def _list(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _numbers(value: Any, kind: type, source: str, single: bool = False) -> tuple[Any, ...]:
    """Read a list of numbers, which YAML has read as texts; or a single one."""
    texts = value if isinstance(value, list) else [value]
    what = {int: "whole numbers", float: "numbers"}[kind]
    try:
        if (single and isinstance(value, list)) or not all(isinstance(text, str) and text.isascii() for text in texts):
            raise ValueError
        return tuple(kind(text) for text in texts)
    except ValueError:
        raise InputError(f"{source} must be {'a number' if single else f'a list of {what}'}") from None
