"""Models by name: check it, load it, save a folder that timm loads by `local-dir:`."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import is_model, parse_model_name, save_for_hf, split_model_name_tag
from torch import nn

from ..errors import InputError

# What comes of arguments that a model does not take, or of weights that are not its own.
REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, ArithmeticError, SafetensorError)


def check_model(name: str, pretrained: bool = True, option: str = "--model", hint: str = "") -> None:
    """Refuse a model or tag that timm does not know, before anything is downloaded.

    Args:
        name: timm model name with its pretrained tag; local-dir:FOLDER and hf-hub:NAME too.
        pretrained: whether weights are wanted.
        option: what the user calls it.
        hint: what else to do where there are no pretrained weights.

    Raises:
        InputError: with what there is instead.
    """
    try:
        source, model_id = parse_model_name(name)
    except ValueError as error:
        raise InputError(f"{option} {name}: {error}") from error
    if source is not None:
        return
    architecture, tag = split_model_name_tag(model_id)
    if not is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise InputError(f"{option} {name} is not known to timm: did you mean {' or '.join(close) or 'another'}?")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and model_id not in tagged:
        raise InputError(f"{option} {name} has no such tag: choose one of {', '.join(tagged) or 'none'}")
    if pretrained and not tagged:
        raise InputError(f"{option} {name} has no pretrained weights{f': {hint}' if hint else ''}")


def model_name(given: str) -> str:
    """What timm calls a model: a folder is `local-dir:` it, the folder of a run its best weights, a name itself."""
    folder = Path(given).expanduser()
    if not folder.is_dir():
        return given
    return f"local-dir:{folder / 'best' if (folder / 'best').is_dir() else folder}"


def short_names(given: Sequence[str], option: str = "--model") -> list[str]:
    """What tables and pictures call models: a folder's own name where no other has it, or the name as it is.

    Raises:
        InputError: a model twice.
    """
    if len(set(given)) < len(given):
        raise InputError(f"{option} {' '.join(given)}: one is named twice")
    short = [Path(name).name if Path(name).expanduser().is_dir() else name for name in given]
    return [one if short.count(one) == 1 else name for one, name in zip(short, given, strict=True)]


def class_names(model: Any) -> list[str] | None:
    """Names of the outputs of a timm model: saved with it, or ImageNet's where it has as many; None: it has none."""
    names = model.pretrained_cfg.get("label_names")
    subset = infer_imagenet_subset(model)
    if names and len(names) == model.num_classes:
        return names
    return ImageNetInfo(subset).label_descriptions(detailed=False) if subset else None


def load_model(name: str, pretrained: bool = True, option: str = "--model", hint: str = "", **kwargs) -> Any:
    """timm.create_model, whose errors become one line for the user; arguments as in `check_model`.

    Raises:
        InputError: weights that cannot be had, or arguments that the model does not take.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except OSError as error:
        if name.startswith("local-dir:"):
            raise InputError(f"{option} {name} cannot be loaded: {error}") from error
        raise InputError(
            f"{option} {name}: the weights are neither in the cache nor to be had from the Hub "
            f"({type(error).__name__}): check the network and HF_HUB_CACHE{f', or {hint}' if hint else ''}"
        ) from error
    except REFUSALS as error:
        raise InputError(f"{option} {name} cannot be made: {error}") from error


def save_pretrained(model: nn.Module, folder: str | Path, label_names: list[str] | None = None) -> None:
    """Write config.json and model.safetensors for `timm.create_model('local-dir:FOLDER', pretrained=True)`.

    Args:
        model: of timm.create_model or from_vit.
        folder: made if it is not there.
        label_names: class names in the order of the head's outputs.
    """
    given = {"label_names": label_names} if label_names else None
    save_for_hf(model, str(folder), model_config=given, safe_serialization=True)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    # once is enough, and twice is once too often for the TimmWrapper of transformers 5
    config.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
