"""The model that a configuration asks for, and what its conversion kept."""

import ast
import difflib
import sys
from collections.abc import Iterator
from typing import Any

import timm
from datasets import Dataset
from timm.data import resolve_data_config
from timm.models import (
    get_model_input_config,
    is_model,
    parse_model_name,
    split_model_name_tag,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..conversion import from_vit
from ..data import ImageDataset, eval_transform
from ..diffvit import DiffVisionTransformer
from ..errors import InputError
from ..report import ConversionReport, conversion_report
from .config import TrainConfig

REPORT_IMAGES = 128

# arguments of --model-kwargs that a plain ViT does not take, and its conversion does
DIFF_SETTINGS = ("branch_dims", "head_norm", "lambda_init")


def check_model(config: TrainConfig) -> None:
    """Refuse a model or tag that timm does not know, before anything is downloaded."""
    name = config.model
    try:
        source, model_id = parse_model_name(name)
    except ValueError as error:
        raise InputError(f"--model {name}: {error}") from error
    if source is not None:
        return
    architecture, tag = split_model_name_tag(model_id)
    if not is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise InputError(f"--model {name} is not known to timm: did you mean {' or '.join(close) or 'another'}?")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and model_id not in tagged:
        raise InputError(f"--model {name} has no such tag: choose one of {', '.join(tagged) or 'none'}")
    if config.pretrained and not tagged:
        raise InputError(f"--model {name} has no pretrained weights: pass --no-pretrained")


def _is_variant(config: TrainConfig) -> bool:
    """Whether the name is one of our variants, whose attention and conversion are arguments of timm.create_model."""
    return config.model.startswith("diffvit")


def _model_kwargs(config: TrainConfig) -> dict:
    kwargs: dict = {}
    for pair in config.model_kwargs:
        name, _, value = pair.partition("=")
        try:
            kwargs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[name] = value  # a plain word
    return kwargs


def _load(config: TrainConfig, **kwargs) -> Any:
    """timm's model of that name; a variant of ours with the attention and conversion asked for."""
    arguments = _model_kwargs(config)
    if not _is_variant(config):
        settings = [name for name in DIFF_SETTINGS if arguments.pop(name, None) is not None]
        if settings and config.attn != "diff":
            raise InputError(f"--model-kwargs {settings[0]} is a setting of a conversion: pass --attn diff with it")
    else:
        arguments |= dict(conversion=config.conversion, attn=None if config.attn == "model" else config.attn)
    try:
        return timm.create_model(config.model, pretrained=config.pretrained, **{**arguments, **kwargs})
    except OSError as error:
        if config.model.startswith("local-dir:"):
            raise InputError(f"--model {config.model} cannot be loaded: {error}") from error
        raise InputError(
            f"--model {config.model}: the weights are neither in the cache nor to be had from the Hub "
            f"({type(error).__name__}): check the network, HF_HUB_CACHE, or pass --no-pretrained"
        ) from error
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(f"--model {config.model} cannot be made: {error}") from error


def _is_differential(model: nn.Module) -> bool:
    return isinstance(model, DiffVisionTransformer) and bool(model.differential_layers())


def _convert(source: Any, config: TrainConfig) -> Any:
    settings = {k: v for k, v in _model_kwargs(config).items() if k in DIFF_SETTINGS}
    try:
        return from_vit(source, config.conversion, **settings)
    except ValueError as error:
        raise InputError(f"--model {config.model} --attn diff: {error}") from error


def create_model(config: TrainConfig, class_names: list[str]) -> nn.Module:
    """The model to train, with one output a class; `--attn diff` converts a plain ViT of timm's or the user's.

    A head for other classes is replaced where the checkpoint is a pretrained tag of timm's; that of a `local-dir:` or
    `hf-hub:` checkpoint is the user's own work, and replaced only by --reset-head.

    Raises:
        InputError: an unknown name or tag, weights that cannot be had, a head of other classes, a network that cannot
            be converted.
    """
    check_model(config)
    own_head = parse_model_name(config.model)[0] is not None and config.pretrained and not config.reset_head
    head = {} if own_head else {"num_classes": len(class_names)}
    model = _load(config, drop_path_rate=config.drop_path or None, **head)
    if config.reset_head:
        model.reset_classifier(len(class_names))  # timm keeps a head of as many classes, whichever they are
    names = model.pretrained_cfg.get("label_names")
    if own_head and (model.num_classes != len(class_names) or (names is not None and list(names) != class_names)):
        raise InputError(
            f"--model {config.model} has a head of {model.num_classes} classes, and not those "
            f"{len(class_names)} of --dataset {config.dataset}: pass --reset-head to start a new head"
        )
    if config.attn == "plain" and _is_differential(model):
        raise InputError(f"--attn plain: the weights of --model {config.model} are a Diff-ViT's")
    if config.attn == "diff" and not _is_differential(model):
        return _convert(model, config)
    return model


def model_data_config(model: Any) -> dict:
    """timm's data settings of a model (mean, std, interpolation, crop), at the size and channels it has now."""
    config = resolve_data_config(pretrained_cfg={**model.pretrained_cfg, **get_model_input_config(model)})
    channels = config["input_size"][0]
    if channels not in (1, 3):
        raise InputError(f"--model-kwargs in_chans={channels}: images are read as grey (1) or colour (3)")
    for name in ("mean", "std"):
        if len(config[name]) != channels:  # a grey model of a colour checkpoint
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


def image_batches(model: nn.Module, split: Dataset, most: int = sys.maxsize) -> Iterator[Tensor]:
    """The first images of a split, up to `most`, as the model wants them in evaluation: batches (n, C, H, W)."""
    data_config = model_data_config(model)
    split = split.take(min(most, len(split)))
    images = ImageDataset(split, eval_transform(data_config), in_chans=data_config["input_size"][0])
    return (batch for batch, _ in DataLoader(images, batch_size=32))


def source_report(config: TrainConfig, split: Dataset) -> ConversionReport | None:
    """What converting the source of `config.model` kept, on up to `REPORT_IMAGES` images.

    None where nothing is converted: a plain model, random weights, a Diff-ViT's own checkpoint.
    """
    if not config.pretrained or not (_is_variant(config) or config.attn == "diff"):
        return None
    source = _load(config, attn="plain") if _is_variant(config) else _load(config)
    if config.attn == "plain" or _is_differential(source):
        return None
    converted = _load(config) if _is_variant(config) else _convert(source, config)
    return conversion_report(source, converted, image_batches(source, split, REPORT_IMAGES))
