"""Conversion of a plain transformer of timm into a differential one.

model = diffvit_timm.from_vit('deit_tiny_patch16_224.fb_in1k')
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from timm import list_pretrained
from timm.models import filter_pretrained_cfg
from torch import Tensor, nn

from ..conversion.calibration import fit_projections, head_pairs, logit_moments
from ..conversion.surgery import check_method, replace_layers
from ..conversion.weights import resolve_method
from ..layers.base import Version2
from ..layers.hooks import batches_for
from .diff_vision_transformer import DiffVisionTransformer
from .diffvit import GENERIC
from .finite_weights import require_finite
from .layer_names import encode_layers
from .pretrained import check_convertible, load_model

__all__ = ["GENERIC", "from_vit"]

# `calibrated` keeps this many images in memory for its least squares, because `images` is read only once.
FIT_IMAGES = 256


def from_vit(
    source: str | nn.Module,
    method: str | None = None,
    images: Tensor | Iterable[Tensor] | None = None,
    *,
    attn: str = "diff",
    lambda_init: float | None = None,
    branch_dims: tuple[int, int] | None = None,
    img_size: int | tuple[int, int] | None = None,
    **model_kwargs,
) -> Any:
    """Convert a plain transformer of timm: copy it, and replace its self-attention layers by differential layers.

    Args:
        source: a network of timm, which is not changed, or what `load_model` takes: a timm model name with its tag,
            hf-hub:NAME, a folder of weights, or a run folder.
        method: conversion method, as in `convert_state_dict`. None chooses 'calibrated' with images and 'svd' without
            them, or 'mirror' for attn='diff_v2'.
        images: unlabelled images to calibrate on, (n, C, H, W), normalised as the source expects, or an iterable of
            such batches, which is read once; 256 images suffice. If a batch is a tuple, such as (images, targets), its
            first element is used.
        attn: 'diff' (version 1) or 'diff_v2'.
        lambda_init: lambda at the start; None: 0.05 for version 1, 0.5 for 'mirror' and 0.04 for 'contrast'.
        branch_dims: widths of the two branches of a head, for version 1; None: three quarters and one quarter.
        img_size: height and width to change to, as timm's set_input_size does.
        **model_kwargs: other arguments of timm.create_model, such as drop_path_rate, for a source given by name.

    Returns:
        A network of the source's class, on its device, in its dtype and mode. timm's functions can save it if
        timm.create_model made the source.

    Raises:
        InputError: a name or folder that cannot be loaded.
        ValueError: a source that cannot be converted, with the layer and the reason; weights with NaN or infinite
            values; images for a method that does not use them; no images for a method that needs them.
    """
    if "conversion" in model_kwargs:
        raise ValueError(f"conversion={model_kwargs['conversion']!r} is an argument of create_model: pass it as method")
    if model_kwargs.pop("head_norm", False):
        raise ValueError("head_norm=True would change the output of pretrained heads: convert with head_norm=False")
    method = resolve_method(method, attn, images is not None)
    if attn == "diff_v2" and lambda_init is not None:
        Version2.require_sigmoid(lambda_init)
    if isinstance(source, str):
        check_convertible(source, "source", method, **model_kwargs)
        source = load_model(source, parameter="source", **model_kwargs)
    elif model_kwargs:
        name, value = next(iter(model_kwargs.items()))
        raise ValueError(f"{name}={value!r} is an argument of create_model: pass it there, when the source is made")
    plain: Any = source
    check_method(plain, method)
    require_finite(plain.state_dict())
    calibration: Any = None
    fit_images: Any = images if method == "contrast" else None
    if method == "pairs" and images is not None:
        calibration = head_pairs(plain, images)
    elif method == "calibrated" and images is not None:
        fit_images = []
        batches = _keep_first(batches_for(plain, images), FIT_IMAGES, fit_images)
        calibration = logit_moments(plain, batches)
    model: Any = copy.deepcopy(plain)
    replace_layers(model, attn, method, calibration, lambda_init, branch_dims)
    if fit_images is not None:
        fit_projections(plain, model.eval(), fit_images)
    # The heads that 'pairs' joins have another shape; no other method changes what is built.
    settings = {"lambda_init": lambda_init, "branch_dims": branch_dims, "conversion": method}
    changed = {k: v for k, v in settings.items() if v is not None and (k != "conversion" or v == "pairs")}
    _name(model, plain, attn, changed)
    if img_size is not None:
        model.set_input_size(img_size=img_size)
    return model.train(plain.training)


def _name(model: Any, source: Any, attn: str, settings: dict[str, Any]) -> None:
    """Record by which architecture and arguments timm.create_model rebuilds a converted network."""
    if isinstance(model, DiffVisionTransformer):  # its architecture knows `attn` itself
        model.attn = attn
    head = model.get_classifier() if hasattr(model, "get_classifier") else None  # encoders have no head
    if isinstance(head, (nn.Linear, nn.Identity)):  # num_classes is wrong if the head was replaced
        model.num_classes = getattr(head, "out_features", 0)
    cfg = getattr(source, "pretrained_cfg", None)
    if not cfg or not cfg.get("architecture"):
        return  # timm.create_model did not make it, so no name rebuilds it
    args = _reconstruction_args(source, attn, settings)
    model._model_args = args
    architecture = GENERIC if "base" in args else cfg["architecture"]
    model.pretrained_cfg = model.default_cfg = {
        **filter_pretrained_cfg(cfg, remove_source=True), "architecture": architecture, "tag": None
    }  # fmt: skip


def _reconstruction_args(source: Any, attn: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of timm.create_model that rebuild a converted network.

    Args:
        source: the plain network, made by timm.create_model.
        attn: attention that it was converted to.
        settings: settings of the conversion that were given.
    """
    args = {**encode_layers(getattr(source, "_model_args", {})), "attn": attn, **settings}
    if isinstance(source, DiffVisionTransformer):
        return args
    base = source.pretrained_cfg["architecture"]
    tagged = f"{base}.{source.pretrained_cfg.get('tag')}"
    # The tag of a plain twin is one of this package, which timm's own architecture does not have.
    return {"base": tagged if tagged in list_pretrained(f"{base}.*") else base, **args}


def _keep_first(batches: Iterable[Tensor], limit: int, kept: list[Tensor]) -> Iterator[Tensor]:
    """Yield the batches, and append their first `limit` images to `kept`."""
    for batch in batches:
        missing = limit - sum(map(len, kept))
        if missing > 0:
            kept.append(batch[:missing])
        yield batch
