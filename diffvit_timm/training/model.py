"""Create the model that a configuration describes, and report what its conversion kept."""

from typing import Any

import torch
from timm.models import VisionTransformer, group_parameters
from timm.models.vision_transformer import init_weights_vit_timm
from torch import nn

from ..console import log0
from ..conversion.report import ConversionReport, conversion_report
from ..conversion.surgery import check_method
from ..conversion.weights import resolve_method
from ..data.loading import image_batches
from ..data.splits import Splits
from ..errors import InputError
from ..layers.adapters import known_layers
from ..layers.adapters.projections import output_projection
from ..layers.base import FROM_SCRATCH_ONLY, attention_kind
from ..models.from_vit import GENERIC, from_vit
from ..models.pretrained import brings_weights, build_model_on_meta, check_model, load_model, size_arguments
from ..options import named
from .config import TrainConfig
from .lora import add_lora, require_peft
from .model_config import DROPOUT_ARGUMENTS, ModelConfig
from .progressive import check_sizes

__all__ = [
    "check_network",
    "check_progressive",
    "check_source",
    "check_variant",
    "conversion_method",
    "create_model",
    "has_classes",
]

REPORT_IMAGES = 128
WITHOUT_WEIGHTS = "pass `pretrained=False`"

# Position parameters that all blocks share. They are frozen with the first block.
SHARED_POSITIONS = ("rope.", "shared_rel_pos.", "rel_pos_bias.")

# Entries of model_kwargs that a plain ViT does not accept, but its conversion does.
DIFF_SETTINGS = ("branch_dims", "head_norm", "lambda_init")


def create_model(
    config: ModelConfig, splits: Splits, report: bool = True, device: str | torch.device = "cpu"
) -> tuple[Any, ConversionReport | None]:
    """Create the model to train, with one output per class, and convert it if the configuration says so.

    Args:
        config: the model to create.
        splits: the class names, and the images to calibrate on (train) and to report on (val).
        report: measure what the conversion kept.
        device: device of the conversion.

    Returns:
        The model on the CPU, in training mode, and the report of its conversion, if there was one.

    Raises:
        InputError: an unknown name or tag, weights that cannot be loaded, a head of other classes, or a network that
            cannot be converted.
    """
    is_own = check_source(config)
    attn = _target_attention(config, is_own)
    source = _load_source(config, attn, len(splits.class_names), is_own)
    if not (config.pretrained or is_own):
        log0(f"{config.model} starts from random weights")
    if attn is None or _is_differential(source):
        _refuse_unused(config, source, is_own)
        model, kept = source, None
    else:
        measures = report and config.pretrained
        # A new head has the same random weights after every kind of conversion, on every device.
        with torch.random.fork_rng(devices=[]):
            model, kept = _convert_on(device, source, config, attn, splits, measures)
    _fit_head(config, model, splits.class_names, keeps_head=is_own and not config.reset_head)
    _freeze(config, model)
    if config.lora:
        add_lora(model, config.lora, _heads(model))
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
    return model.train(), kept


def check_source(config: ModelConfig) -> bool:
    """Check that the model exists and can be converted, before data is loaded or weights are downloaded.

    Returns:
        Whether the model is the user's own, from a folder or a Hub repository. The head of such a model is kept unless
        `reset_head` replaces it; the head of a model that timm names is not.

    Raises:
        InputError: as `check_model`; the architecture `diffvit` without a base that timm names; a network that the
            configuration wants to convert and that cannot be converted; or LoRA without peft or pretrained weights.
    """
    if config.lora:
        require_peft(config.lora)
    if config.model == GENERIC:
        _check_base(config)
    else:
        check_model(config.model, config.pretrained, hint=WITHOUT_WEIGHTS)
    is_own = brings_weights(config.model)
    if config.attn in FROM_SCRATCH_ONLY and (config.pretrained or not _is_variant(config, is_own)):
        raise InputError(
            f"`attn={config.attn}` has no pretrained weights: pass `pretrained=False` with one of the diffvit models"
        )
    if config.lora and not (config.pretrained or is_own):
        raise InputError(f"`lora={config.lora}` adapts pretrained weights: leave out `pretrained=False`")
    _check_conversion(config, is_own)
    return is_own


def _check_base(config: ModelConfig) -> None:
    """Check the plain network of the architecture `diffvit`, which its saved config names: no folder of one machine."""
    base = config.keyword_arguments.get("base")
    if base is None:
        raise InputError(f"`model={GENERIC}` needs the name of a plain network: pass `model_kwargs=base=NAME`")
    if brings_weights(str(base), "model_kwargs=base"):
        raise InputError(
            f"`model_kwargs=base={base}` must be the name of a timm model: to convert a folder or a repository, pass "
            "it as `model`, with `attn=diff` or `attn=diff_v2`"
        )
    check_model(str(base), config.pretrained, "model_kwargs=base", WITHOUT_WEIGHTS)


def check_variant(config: ModelConfig) -> None:
    """Create a diffvit variant without weights or memory, to check its arguments before the first training.

    Raises:
        InputError: arguments that the variant does not accept, or more blocks to freeze than it has.
    """
    attn = {} if config.attn == "model" else {"attn": config.attn}
    _freeze(config, build_model_on_meta(config.model, **{**_model_arguments(config), **attn}))


def check_network(config: TrainConfig) -> None:
    """Check the network of one of many trainings, before the first of them.

    Raises:
        InputError: as `check_source`, `check_progressive` and, for a diffvit variant from scratch, `check_variant`.
    """
    check_source(config.model)
    if config.model.model.startswith("diffvit") and not config.model.pretrained:
        check_variant(config.model)
    check_progressive(config)


def check_progressive(config: TrainConfig) -> None:
    """Check that the network takes images of all sizes of its training, before data or weights are loaded.

    Raises:
        InputError: as `check_sizes`.
    """
    if config.optim.progressive_sizes and not config.run.eval_only:
        is_own = brings_weights(config.model.model)
        arguments = _source_arguments(config.model, _target_attention(config.model, is_own), is_own)
        check_sizes(build_model_on_meta(config.model.model, **arguments), config.optim.progressive_sizes)


def conversion_method(config: ModelConfig, attn: str) -> str:
    """Return the method that converts to `attn`; errors as in `resolve_method`."""
    return resolve_method(config.conversion, attn, with_images=config.looks_at_images)


def has_classes(model: Any, class_names: list[str]) -> bool:
    """Return whether the model's outputs are these classes. Without saved names, only their number is compared."""
    names = model.pretrained_cfg.get("label_names")
    return model.num_classes == len(class_names) and (names is None or list(names) == class_names)


def _is_variant(config: ModelConfig, is_own: bool) -> bool:
    """Return whether the name is a registered diffvit variant, which takes `attn` as an argument of create_model."""
    return not is_own and config.model.startswith("diffvit")


def _is_differential(model: nn.Module) -> bool:
    return attention_kind(model) != "plain"


def _target_attention(config: ModelConfig, is_own: bool) -> str | None:
    """Return the attention to convert plain weights to, or None if there is nothing to convert."""
    is_variant = _is_variant(config, is_own)
    if config.attn == "plain" or (is_variant and not config.pretrained):
        return None
    if config.attn != "model":
        return config.attn
    return {"diffvit": "diff", "diffvit2": "diff_v2"}.get(config.model.split("_")[0]) if is_variant else None


def _model_arguments(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of timm.create_model that the configuration names."""
    return {**config.keyword_arguments, **size_arguments(config.img_size)}


def _check_conversion(config: ModelConfig, is_own: bool) -> None:
    """Check that the network has an attention that can be converted, if the configuration converts it."""
    attn = _target_attention(config, is_own)
    if attn is None:
        return
    network = build_model_on_meta(config.model, **_source_arguments(config, attn, is_own))
    if not _is_differential(network):
        try:
            check_method(network, config.conversion)
        except ValueError as error:
            raise _not_convertible(config, attn, error) from error


def _source_arguments(config: ModelConfig, attn: str | None, is_own: bool) -> dict[str, Any]:
    """Return the arguments of timm.create_model for the network to convert to `attn`, or else to train."""
    kwargs: dict = _model_arguments(config)
    is_variant = _is_variant(config, is_own)
    settings = [name for name in DIFF_SETTINGS if name in config.keyword_arguments]
    if config.drop_path:
        kwargs["drop_path_rate"] = config.drop_path
    if config.dropout:
        kwargs |= dict.fromkeys(DROPOUT_ARGUMENTS, config.dropout)
    if attn:
        kwargs |= dict.fromkeys(settings)  # they are for the conversion; timm ignores arguments that are None
        kwargs |= {"attn": "plain"} if is_variant else {}
    elif settings and not is_variant:
        raise InputError(f"`model_kwargs={settings[0]}=...` is a setting of a conversion: pass `attn=diff` with it")
    else:
        kwargs |= {"attn": config.attn} if is_variant and config.attn != "model" else {}
    return kwargs


def _load_source(config: ModelConfig, attn: str | None, class_count: int, is_own: bool) -> Any:
    """Load the network to convert to `attn`, with its own head; or the network to train, if there is no conversion."""
    kwargs = _source_arguments(config, attn, is_own)
    kwargs |= {} if attn or is_own else {"num_classes": class_count}
    return load_model(config.model, config.pretrained, hint=WITHOUT_WEIGHTS, **kwargs)


def _convert_on(
    device: str | torch.device, source: Any, config: ModelConfig, attn: str, splits: Splits, measures: bool
) -> tuple[Any, ConversionReport | None]:
    """Convert on a device, or on the CPU if the memory of the device is too small.

    Returns:
        The converted network on the CPU, and the report of its conversion if `measures`.
    """
    try:
        source.to(device)
        model = _convert(source, config, attn, splits)
        kept = conversion_report(source, model, image_batches(source, splits.val, REPORT_IMAGES)) if measures else None
    except torch.OutOfMemoryError:
        if torch.device(device).type == "cpu":
            raise
        log0(f"the memory of {device} is too small for the conversion, which goes on on the CPU")
        return _convert_on("cpu", source, config, attn, splits, measures)
    return model.cpu(), kept


def _convert(source: Any, config: ModelConfig, attn: str, splits: Splits) -> Any:
    settings = {k: v for k, v in config.keyword_arguments.items() if k in DIFF_SETTINGS}
    try:
        images = None
        if config.looks_at_images:
            images = image_batches(source, splits.train, config.calibration_images, "reading calibration images")
        return from_vit(source, config.conversion, images, attn=attn, **settings)
    except InputError:
        raise
    except ValueError as error:
        raise _not_convertible(config, attn, error) from error


def _not_convertible(config: ModelConfig, attn: str, error: ValueError) -> InputError:
    return InputError(
        f"`model={config.model}` cannot be converted with `attn={attn}`, `conversion={config.conversion}`: {error}"
    )


def _fit_head(config: ModelConfig, model: Any, class_names: list[str], keeps_head: bool) -> None:
    """Give the model one output per class. A head of that size is kept, unless `reset_head` asks for a new one."""
    if keeps_head:
        if not has_classes(model, class_names):
            raise InputError(
                f"`model={config.model}` has a head of {model.num_classes} classes, which differ from the "
                f"{len(class_names)} classes of the dataset: to train a new head, pass `reset_head`"
            )
        if config.head_init == "probe":
            raise InputError(f"`head_init=probe` would replace the head of `model={config.model}`: pass `reset_head`")
    elif config.reset_head or model.num_classes != len(class_names):
        model.reset_classifier(len(class_names))
        if isinstance(model, VisionTransformer):
            init_weights_vit_timm(model.head, "head")  # as timm.create_model(num_classes=...) initialises a head


def _heads(model: Any) -> tuple[nn.Module, ...]:
    """Return the classifiers of a model: a distilled DeiT has two."""
    heads = model.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)


def _freeze(config: ModelConfig, model: Any) -> None:
    """Exclude the weights that `freeze` names from training."""
    if config.freeze in ("backbone", "proj"):
        model.requires_grad_(False)
        if config.freeze == "proj":
            try:
                layers = known_layers(model)
            except ValueError as error:
                raise InputError(f"`freeze=proj` does not apply to `model={config.model}`: {error}") from error
            for layer in layers.values():
                output_projection(layer).requires_grad_(True)
        for head in _heads(model):
            head.requires_grad_(True)
    elif config.freeze != "none":
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        blocks = len(set(layers.values())) - 2  # without the stem and the group after the last block
        if int(config.freeze) > blocks:
            raise InputError(f"`freeze={config.freeze}`: `model={config.model}` has only {blocks} blocks")
        for name, parameter in model.named_parameters():
            # timm counts the norm after the last block as a part of that block
            trained = layers[name] > int(config.freeze) or name.startswith("norm.")
            parameter.requires_grad_(trained and not name.startswith(SHARED_POSITIONS))


def _refuse_unused(config: ModelConfig, model: Any, is_own: bool) -> None:
    """Refuse options of a conversion if nothing is converted."""
    reason = "is already differential" if _is_differential(model) else "is not converted here"
    if _is_differential(model) and config.attn not in ("model", attention_kind(model)):
        raise InputError(
            f"`attn={config.attn}`: `model={config.model}` already has the attention {attention_kind(model)}"
        )
    if config.conversion != "auto":
        raise InputError(
            f"`conversion={config.conversion}` has no effect: `model={config.model}` {reason}; leave it out"
        )
    settings = set(config.keyword_arguments) & set(DIFF_SETTINGS)
    if config.attn != "model" and not _is_variant(config, is_own) and settings:
        given = named("model_kwargs", config.model_kwargs)
        raise InputError(f"{given}: `model={config.model}` {reason}, and its attention is fixed; leave it out")
