"""The model that a configuration asks for, and what its conversion kept."""

from typing import Any

import torch
from datasets import Dataset
from timm.models import (
    VisionTransformer,
    group_parameters,
    parse_model_name,
)
from timm.models.vision_transformer import init_weights_vit_timm
from torch import nn

from ..conversion.report import ConversionReport, conversion_report
from ..conversion.weights import READS_IMAGES, resolve_method
from ..data.datasets import Splits
from ..data.loading import image_batches
from ..errors import InputError
from ..models.diff_vision_transformer import DiffVisionTransformer
from ..models.from_vit import from_vit
from ..models.pretrained import check_model, load_model
from .config import TrainConfig

REPORT_IMAGES = 128
WITHOUT_WEIGHTS = "pass --no-pretrained"

# arguments of --model-kwargs that a plain ViT does not take, and its conversion does
DIFF_SETTINGS = ("branch_dims", "head_norm", "lambda_init")


def _is_variant(config: TrainConfig) -> bool:
    """Whether the name is one of our variants, whose attention and conversion are arguments of timm.create_model."""
    return config.model.startswith("diffvit")


def _load(config: TrainConfig, **kwargs) -> Any:
    """timm's model of that name, with the arguments of --model-kwargs."""
    return load_model(config.model, config.pretrained, hint=WITHOUT_WEIGHTS, **{**config.model_arguments, **kwargs})


def _is_differential(model: nn.Module) -> bool:
    return isinstance(model, DiffVisionTransformer) and bool(model.differential_layers())


def _target_attention(config: TrainConfig) -> str | None:
    """The attention to convert plain weights to; None where there is nothing to convert."""
    if config.attn == "plain" or (not config.pretrained and _is_variant(config)):
        return None
    if config.attn != "model":
        return config.attn
    return {"diffvit": "diff", "diffvit2": "diff_v2"}.get(config.model.split("_")[0])


def owns_head(config: TrainConfig) -> bool:
    """Whether the head is the user's own work, which only --reset-head replaces; that of a timm tag is not."""
    return config.pretrained and parse_model_name(config.model)[0] is not None


def _load_source(config: TrainConfig, attn: str | None, classes: int) -> Any:
    """The network to convert to `attn`, with the head that it has, or the one to train as it is."""
    kwargs: dict = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    settings = [name for name in DIFF_SETTINGS if name in config.model_arguments]
    if attn:
        kwargs |= dict.fromkeys(settings)  # for the conversion; timm drops what is None
        if _is_variant(config):
            kwargs["attn"] = "plain"
        return _load(config, **kwargs)
    if settings and not _is_variant(config):
        raise InputError(f"--model-kwargs {settings[0]} is a setting of a conversion: pass --attn diff with it")
    if _is_variant(config) and config.attn != "model":
        kwargs["attn"] = config.attn
    if not owns_head(config):
        kwargs["num_classes"] = classes
    return _load(config, **kwargs)


def conversion_method(config: TrainConfig, attn: str) -> str:
    """The method that converts to `attn`.

    Raises:
        ValueError: a method of another attention.
    """
    return resolve_method(config.conversion, attn, with_images=config.conversion in READS_IMAGES)


def _convert(source: Any, config: TrainConfig, attn: str, split: Dataset) -> Any:
    settings = {k: v for k, v in config.model_arguments.items() if k in DIFF_SETTINGS}
    try:
        method, images = conversion_method(config, attn), None
        if method in READS_IMAGES:
            images = image_batches(source, split, config.calibration_images, "looking at images")
        return from_vit(source, method, images, attn=attn, **settings)
    except ValueError as error:
        raise InputError(f"--model {config.model} --attn {attn} --conversion {config.conversion}: {error}") from error


def has_classes(model: Any, class_names: list[str]) -> bool:
    """Whether the outputs of a model are these classes; one that was saved without names is judged by their number."""
    names = model.pretrained_cfg.get("label_names")
    return model.num_classes == len(class_names) and (names is None or list(names) == class_names)


def _fit_head(config: TrainConfig, model: Any, class_names: list[str]) -> None:
    """Give the model one output a class; a head of as many is kept, unless --reset-head asks for a new one."""
    if owns_head(config) and not config.reset_head:
        if not has_classes(model, class_names):
            raise InputError(
                f"--model {config.model} has a head of {model.num_classes} classes, and not those "
                f"{len(class_names)} of --dataset {config.dataset}: pass --reset-head to start a new head"
            )
        if config.head_init == "probe":
            raise InputError(f"--head-init probe would replace the head of --model {config.model}: pass --reset-head")
    elif config.reset_head or model.num_classes != len(class_names):
        model.reset_classifier(len(class_names))
        if isinstance(model, VisionTransformer):
            init_weights_vit_timm(model.head, "head")  # as a head of timm.create_model(num_classes=...) starts


def _freeze(config: TrainConfig, model: Any) -> None:
    """Take the weights that --freeze names out of training."""
    if config.freeze == "backbone":
        model.requires_grad_(False)
        heads = model.get_classifier()
        for head in heads if isinstance(heads, tuple) else (heads,):  # a distilled DeiT has two
            head.requires_grad_(True)
    elif config.freeze != "none":
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        blocks = len(set(layers.values())) - 2  # the stem, and what follows the last block
        if int(config.freeze) > blocks:
            raise InputError(f"--freeze {config.freeze}: --model {config.model} has {blocks} blocks")
        for name, parameter in model.named_parameters():
            # timm counts the norm after the last block to that block
            parameter.requires_grad_(layers[name] > int(config.freeze) or name.startswith("norm."))


def _refuse_unused(config: TrainConfig, model: Any) -> None:
    """Refuse what was asked of a conversion where nothing is converted."""
    what = "a Diff-ViT already" if _is_differential(model) else "not converted here"
    if _is_differential(model) and config.attn not in ("model", model.attn):
        raise InputError(f"--attn {config.attn}: the weights of --model {config.model} are a Diff-ViT's, {model.attn}")
    if config.conversion != "auto":
        raise InputError(f"--conversion {config.conversion}: --model {config.model} is {what}; leave it out")
    if config.attn != "model" and not _is_variant(config) and set(config.model_arguments) & set(DIFF_SETTINGS):
        raise InputError(f"--model-kwargs: --model {config.model} is {what}, and its attention is set; leave it out")


def check_variant(config: TrainConfig) -> None:
    """Make one of our variants without its weights, as it is asked for, and forget it.

    Raises:
        InputError: arguments that it does not take, or more blocks to freeze than it has.
    """
    attn = {} if config.attn == "model" else {"attn": config.attn}
    with torch.device("meta"):
        _freeze(config, load_model(config.model, pretrained=False, **{**config.model_arguments, **attn}))


def create_model(config: TrainConfig, splits: Splits, report: bool = True) -> tuple[Any, ConversionReport | None]:
    """The model to train, with one output a class, converted where the configuration asks for it.

    Args:
        config: what to make.
        splits: the classes, the images to calibrate on (train) and to report on (val).
        report: measure what the conversion kept.

    Returns:
        The model and, of a conversion, its report.

    Raises:
        InputError: an unknown name or tag, weights that cannot be had, a head of other classes, a network that cannot
            be converted.
    """
    check_model(config.model, config.pretrained, hint=WITHOUT_WEIGHTS)
    attn = _target_attention(config)
    model = source = _load_source(config, attn, len(splits.class_names))
    kept = None
    if attn is None or _is_differential(source):
        _refuse_unused(config, source)
    else:
        model = _convert(source, config, attn, splits.train)
        if report and config.pretrained:
            kept = conversion_report(source, model, image_batches(source, splits.val, REPORT_IMAGES))
    _fit_head(config, model, splits.class_names)
    _freeze(config, model)
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
    return model.train(), kept
