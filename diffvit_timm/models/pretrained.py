"""Load a model by its name or folder, and save it into a folder.

Every function and command that takes a model takes the same four forms:
    - a timm model name, with its pretrained tag: deit_tiny_patch16_224.fb_in1k
    - the name of a repository on the Hugging Face Hub: hf-hub:USER/NAME
    - a folder of weights, which `save_pretrained` or timm's save_for_hf wrote: FOLDER, or timm's local-dir:FOLDER
    - the folder of a training run, which stands for the weights in its subfolder best/
A folder or a repository always brings its weights: they are never replaced by random ones.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from timm.models import is_model, parse_model_name, save_for_hf, split_model_name_tag
from timm.models._hub import download_from_hf
from torch import nn

from ..checksums import CHECKSUMS, check_unchanged
from ..console import shortened
from ..conversion.surgery import check_method
from ..errors import InputError
from ..layers.base import attention_kind
from ..layers.pos_embed import POS_EMBEDS_2D
from .diff_vision_transformer import DiffVisionTransformer
from .diffvit import GENERIC, timm_architecture
from .finite_weights import require_finite
from .layer_names import decode_layers, encode_layers, names_layer
from .meta_device import build_on_meta, check_size
from .outputs import is_multi_label_model, set_multi_label
from .saved_config import MULTI_LABEL, SavedLabels, check_config

__all__ = [
    "brings_weights",
    "build_model_on_meta",
    "check_convertible",
    "check_model",
    "check_name",
    "load_model",
    "resolve_model_name",
    "save_pretrained",
    "short_names",
    "size_arguments",
]

MODEL_FORMS = "a timm model name (with its tag), hf-hub:NAME, a folder of weights, or a run folder"

OWN_WEIGHTS = {"local-dir:": "a folder of weights", "hf-hub:": "a repository on the Hub"}

ERROR_LENGTH = 400  # characters; PyTorch lists every tensor that is missing in a checkpoint


def resolve_model_name(given: str, parameter: str = "model") -> str:
    """Return the name by which timm.create_model loads a model.

    Args:
        given: one of the four forms of a model (see the top of this file). A name that timm knows is always that model;
            write ./NAME for a folder of the same name.
        parameter: what the caller calls this parameter.

    Returns:
        `local-dir:FOLDER` for a folder of weights, `local-dir:RUN/best` for a run folder, `hf-hub:NAME` for a
        repository, otherwise `given`.

    Raises:
        InputError: a folder that does not exist or contains no model.
    """
    try:
        kind, name = parse_model_name(given)
    except ValueError:  # timm refuses a path without local-dir:, and an unknown prefix
        kind, name = "local-dir", given
    folder = Path(name).expanduser()
    if kind == "hf-hub":
        return f"hf-hub:{name}"  # timm also reads hf_hub: and capitals
    if kind is None and (is_model(split_model_name_tag(name)[0]) or not folder.is_dir()):
        return given
    if not folder.is_dir():
        raise InputError(f"`{parameter}={given}` is neither a model name nor an existing folder: give {MODEL_FORMS}")
    weights = folder / "best" if (folder / "best").is_dir() else folder
    if not (weights / "config.json").is_file():
        raise InputError(f"`{parameter}={given}` is a folder without a model (no config.json): give {MODEL_FORMS}")
    return f"local-dir:{weights}"


def brings_weights(name: str, parameter: str = "model") -> bool:
    """Return whether a model is a folder or a repository on the Hub, which always brings its weights.

    Args:
        name: one of the four forms of a model (see the top of this file).
        parameter: what the caller calls the parameter `name`.

    Raises:
        InputError: as `resolve_model_name`.
    """
    return resolve_model_name(name, parameter).startswith(tuple(OWN_WEIGHTS))


def check_model(name: str, pretrained: bool = True, parameter: str = "model", hint: str = "") -> str:
    """Check that a model exists and has the weights that are wanted, before they are downloaded or loaded.

    Args:
        name: one of the four forms of a model (see the top of this file).
        pretrained: whether to load pretrained weights, or to start from random ones.
        parameter: what the caller calls the parameter `name`.
        hint: what the user can do instead if there are no pretrained weights.

    Returns:
        The name by which timm.create_model loads the model, as `resolve_model_name`.

    Raises:
        InputError: as `check_name`; no pretrained weights, or random ones for a folder or a repository.
    """
    timm_name = resolve_model_name(name, parameter)
    kind = next((kind for prefix, kind in OWN_WEIGHTS.items() if timm_name.startswith(prefix)), None)
    if kind and not pretrained:
        raise InputError(
            f"`pretrained=False`: `{parameter}={name}` is {kind}, which always brings its weights: leave "
            "`pretrained=False` out, or give the name of a timm model to start from random weights"
        )
    check_name(name, parameter)
    if not kind and pretrained and not timm.list_pretrained(f"{split_model_name_tag(name)[0]}.*"):
        raise InputError(f"`{parameter}={name}` has no pretrained weights{f': {hint}' if hint else ''}")
    return timm_name


def check_name(name: str, parameter: str = "model") -> None:
    """Check that a model exists.

    For a repository on the Hub, this downloads its config.json. The config of a saved model is checked.

    Args:
        name: one of the four forms of a model (see the top of this file).
        parameter: what the caller calls the parameter `name`.

    Raises:
        InputError: an unknown model, tag or folder, with the alternatives; or a saved model with a config that is
            wrong, or that describes a network too large for the machine or for the weights.
    """
    timm_name = resolve_model_name(name, parameter)
    if timm_name.startswith(tuple(OWN_WEIGHTS)):
        with _creation_errors(name, timm_name, parameter):
            _check_saved(timm_name)
        return
    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        fix = f"did you mean {' or '.join(close)}?" if close else f"give {MODEL_FORMS}"
        raise InputError(f"`{parameter}={name}` is not known to timm: {fix}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        fix = f"choose one of {', '.join(tagged)}" if tagged else "leave the tag out"
        raise InputError(f"`{parameter}={name}` has no such tag: {fix}")


def load_model(name: str, pretrained: bool = True, parameter: str = "model", hint: str = "", **kwargs) -> Any:
    """Create a model by timm.create_model, and turn its errors into one sentence for the user.

    Args:
        name: one of the four forms of a model (see the top of this file).
        pretrained: whether to load pretrained weights. A folder or a repository always loads its weights.
        parameter: what the caller calls the parameter `name`.
        hint: what the user can do instead if the weights cannot be downloaded.
        **kwargs: arguments of timm.create_model. A layer class may be given by name, such as mlp_layer='SwiGLUPacked'.

    Raises:
        InputError: as `check_model`; weights that cannot be loaded, have changed since a training saved them, or have
            NaN or infinite values; or arguments that the model does not accept.
    """
    timm_name = resolve_model_name(name, parameter)
    has_weights = pretrained or timm_name.startswith(tuple(OWN_WEIGHTS))
    with _creation_errors(name, timm_name, parameter, hint):
        labels = _check_saved(timm_name)
        if timm_name.startswith("local-dir:"):
            check_unchanged(Path(timm_name.removeprefix("local-dir:")))
        model: Any = timm.create_model(timm_name, pretrained=has_weights, **decode_layers(kwargs))
        if labels and labels.names is not None:
            model.pretrained_cfg["label_names"] = labels.names
        if labels and labels.is_multi_label:
            set_multi_label(model)
        if has_weights:
            require_finite(model.state_dict())
    return model


def size_arguments(img_size: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of `load_model` for an image size: none, one number of pixels, or height and width."""
    if not img_size:
        return {}
    return {"img_size": tuple(img_size) if len(img_size) == 2 else img_size[0]}


def build_model_on_meta(name: str, parameter: str = "model", **kwargs: Any) -> Any:
    """Build the network of a model on the meta device, without weights and memory.

    Args:
        name: one of the four forms of a model (see the top of this file).
        parameter: what the caller calls the parameter `name`.
        **kwargs: arguments of timm.create_model.

    Raises:
        InputError: as `check_model`, or arguments that the model does not accept.
    """
    timm_name = resolve_model_name(name, parameter)
    with _creation_errors(name, timm_name, parameter):
        _check_saved(timm_name)
        return build_on_meta(timm_name, **decode_layers(kwargs))


def check_convertible(name: str, parameter: str = "model", method: str | None = None, **kwargs: Any) -> None:
    """Check that a plain network can be converted, before its weights are downloaded or loaded.

    Args:
        name, parameter, **kwargs: as in `build_model_on_meta`.
        method: conversion method.

    Raises:
        InputError: as `build_model_on_meta`, or a network that cannot be converted, with the layer and the reason.
    """
    check_name(name, parameter)  # it names the close matches of an unknown name
    network = build_model_on_meta(name, parameter, **kwargs)
    try:
        check_method(network, method)
    except ValueError as error:
        raise InputError(f"`{parameter}={name}`: {error}") from error


@contextmanager
def _creation_errors(name: str, timm_name: str, parameter: str, hint: str = "") -> Iterator[None]:
    """Turn the errors of timm.create_model within this context into one sentence for the user."""
    try:
        yield
    except OSError as error:
        if timm_name.startswith("local-dir:"):
            raise InputError(f"`{parameter}={name}` cannot be loaded: {error}") from error
        advice = f", or {hint}" if hint and not timm_name.startswith("hf-hub:") else ""
        raise InputError(
            f"`{parameter}={name}` cannot be loaded: it is not in the cache and cannot be downloaded "
            f"({type(error).__name__}); check the network and HF_HUB_CACHE{advice}"
        ) from error
    except Exception as error:  # the config and the weights of a stranger can make any line of timm fail
        reason = str(error) if isinstance(error, (RuntimeError, ValueError)) else f"{type(error).__name__}: {error}"
        raise InputError(f"`{parameter}={name}` cannot be created: {shortened(reason, ERROR_LENGTH)}") from error


def _check_saved(timm_name: str) -> SavedLabels | None:
    """Check a saved model before anything is allocated: its config, and that its size fits the machine and its files.

    Args:
        timm_name: result of `resolve_model_name`. A model that timm names is not checked.

    Returns:
        The labels of a saved model.

    Raises:
        ValueError: a wrong config, or a network that is too large; also any error of timm.create_model.
    """
    source, place = parse_model_name(timm_name)
    if source is None:
        return None
    config = Path(place) / "config.json" if source == "local-dir" else Path(download_from_hf(place, "config.json"))
    labels = check_config(config)
    network = build_on_meta(f"local-dir:{config.parent}")
    if not hasattr(network, "num_classes"):
        raise ValueError("its config.json describes a feature extractor, which has no outputs")
    check_size(network, Path(place) if source == "local-dir" else None)
    return labels


def short_names(given: Sequence[str], parameter: str = "model") -> list[str]:
    """Shorten the names of models for tables and figures.

    Args:
        given: models, each in one of the four forms (see the top of this file), or clip:FOLDER for CLIP.
        parameter: what the caller calls the parameter `given`.

    Returns:
        For each folder the last part of its path, unless two of them would be equal; other names are not changed.

    Raises:
        InputError: the same model twice.
    """
    if len(set(given)) < len(given):
        raise InputError(f"`{parameter}={' '.join(given)}` names a model twice: give each model once")
    folders = [Path(re.sub("^(clip:)?(local-dir:)?", "", name)).expanduser() for name in given]
    short = [folder.name if folder.is_dir() else name for folder, name in zip(folders, given, strict=True)]
    return [one if short.count(one) == 1 else name for one, name in zip(short, given, strict=True)]


def save_pretrained(model: nn.Module, folder: str | Path, label_names: list[str] | None = None) -> None:
    """Write config.json and model.safetensors, which timm.create_model('local-dir:FOLDER', pretrained=True) loads.

    Args:
        model: a model from timm.create_model or from_vit.
        folder: folder to write to; it is created if it does not exist.
        label_names: class names, in the order of the outputs of the head.

    Raises:
        InputError: a model that was built without timm.create_model, so that no name rebuilds it, or with an argument
            that a config cannot contain.
    """
    if not (getattr(model, "pretrained_cfg", None) or {}).get("architecture"):
        raise InputError(
            f"a {type(model).__name__} that was built without timm.create_model cannot be saved, because no name "
            "rebuilds it: create it by timm.create_model"
        )
    model_config: dict[str, Any] = {"label_names": label_names} if label_names else {}
    if is_multi_label_model(model):
        model_config["problem_type"] = MULTI_LABEL
    model_args = encode_layers(getattr(model, "_model_args", {}))
    _require_json(model_args)
    named = {name: value for name, value in model_args.items() if names_layer(value)}
    save_for_hf(model, str(folder), model_config=model_config, model_args=named, safe_serialization=True)
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    # num_classes is also at the top level, and the TimmWrapper of transformers 5 fails if it gets it twice.
    config.get("model_args", {}).pop("num_classes", None)
    config["pretrained_cfg"].pop("problem_type", None)  # it is at the top level, where transformers has it
    if attention_kind(model) == "plain":
        _name_timms_own(model, config)
    path.write_text(json.dumps(config, indent=2) + "\n")
    (Path(folder) / CHECKSUMS).unlink(missing_ok=True)  # of what was there before


def _require_json(args: dict[str, Any]) -> None:
    """Check that a config can contain the arguments of a network, before its weights are written."""
    for name, value in args.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"`{name}={value}` cannot be saved in a config: pass a number, a text, or a layer class of timm.layers "
                "or torch.nn"
            ) from error


def _name_timms_own(model: Any, config: dict) -> None:
    """Let the config of a plain twin name timm's own architecture, so that timm loads it without this package.

    A twin with a stem, or with a position embedding or an eps that timm's function does not take, keeps its name. timm
    does not take layers by name, so a network with such an argument is loaded through the architecture `diffvit`.
    """
    args = config.get("model_args", {})
    if any(map(names_layer, args.values())):
        if not isinstance(model, DiffVisionTransformer):
            args |= {"base": config["architecture"], "attn": "plain"}
            config["architecture"] = GENERIC
        return
    if isinstance(model, DiffVisionTransformer):
        if args.get("pos_embed") in POS_EMBEDS_2D or "norm_eps" in args or model.has_stem:
            return
        config["architecture"] = timm_architecture(config["architecture"])
        block: Any = model.blocks[0]
        args["patch_size"] = list(model.patch_embed.patch_size)
        args |= {"embed_dim": model.embed_dim, "depth": len(model.blocks), "num_heads": block.attn.num_heads}
        args["mlp_ratio"] = block.mlp.fc1.out_features / model.embed_dim
    for name in ("base", "attn", "head_norm", "lambda_init", "branch_dims"):
        args.pop(name, None)
