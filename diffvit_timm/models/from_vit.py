"""Conversion of a plain ViT into a Diff-ViT of the same shape.

model = diffvit_timm.from_vit('deit_tiny_patch16_224.fb_in1k')
"""

from collections.abc import Iterable, Iterator
from typing import Any

import timm
from timm.layers import get_device_dtype
from timm.models import VisionTransformer, filter_pretrained_cfg, is_model
from torch import Tensor

from ..conversion.calibration import fit_projections, head_pairs, logit_moments
from ..conversion.sources import check_source, vit_args
from ..conversion.weights import convert_state_dict, pairs_kwargs, resolve_method
from ..layers.hooks import batches_for
from .pretrained import load_model

__all__ = ["from_vit"]

# `calibrated` keeps this many images in memory for its least squares, because `images` is read only once.
FIT_IMAGES = 256


def from_vit(
    source: str | VisionTransformer,
    method: str | None = None,
    images: Tensor | Iterable[Tensor] | None = None,
    **model_kwargs,
) -> VisionTransformer:
    """Convert a plain ViT into a Diff-ViT of the same shape.

    Args:
        source: a timm VisionTransformer, which is not changed, or what `load_model` takes: a timm model name with its
            tag, hf-hub:NAME, a folder of weights, or a run folder.
        method: conversion method, as in `convert_state_dict`. None chooses 'calibrated' with images and 'svd' without
            them, or 'mirror' for attn='diff_v2'.
        images: unlabelled images to calibrate on, (n, C, H, W), normalised as the source expects, or an iterable of
            such batches, which is read once; 256 images suffice. If a batch is a tuple, such as (images, targets), its
            first element is used.
        **model_kwargs: arguments of the Diff-ViT, such as attn, lambda_init, branch_dims and drop_path_rate. img_size
            resamples the position embedding.

    Returns:
        A DiffVisionTransformer on the device of the source, in its dtype and mode. timm's functions can save it.

    Raises:
        InputError: a name or folder that cannot be loaded.
        ValueError: a source that cannot be converted, with the reason; images for a method that does not use them; no
            images for a method that needs them.
    """
    if "conversion" in model_kwargs:
        raise ValueError(f"conversion={model_kwargs['conversion']!r} is an argument of create_model: pass it as method")
    method = resolve_method(method, model_kwargs.get("attn", "diff"), images is not None)
    img_size = model_kwargs.pop("img_size", None)
    if isinstance(source, str):
        source = load_model(source, parameter="source")
    check_source(source)
    args = vit_args(source)
    changeable = [name for name in args if name.startswith("dynamic_") or name.endswith("_rate")]
    for name, value in model_kwargs.items():
        if name in args and name not in changeable:
            raise ValueError(f"{name}={value!r} would change the shape, which is that of the source: leave it out")
    if method == "pairs":
        if source.attn_pool is not None:
            raise ValueError(
                "conversion 'pairs' would also halve the heads of the attention pooling of this source: choose another"
            )
        args |= pairs_kwargs(args["num_heads"], source.embed_dim // args["num_heads"])
    # A network that timm.create_model did not make has no pretrained_cfg.
    cfg = getattr(source, "pretrained_cfg", None) or dict(
        input_size=(source.in_chans, *args["img_size"]), classifier="head", first_conv="patch_embed.proj"
    )
    # The variant only names an entry point for loading a saved config, because `args` replaces its whole shape.
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
    variant = f"diffvit_{sizes.get(source.embed_dim)}_patch{args['patch_size'][0]}"
    variant = variant if is_model(variant) else "diffvit_base_patch16"
    model: Any = timm.create_model(
        variant,
        pretrained_cfg={**filter_pretrained_cfg(cfg, remove_source=True), "architecture": variant},
        **{**args, **model_kwargs},
        **get_device_dtype(source),
    )
    calibration: Any = None
    fit_images: list[Tensor] = []
    if images is not None:
        if method == "pairs":
            calibration = head_pairs(source, images)
        else:
            batches = _keep_first(batches_for(source, images), FIT_IMAGES, fit_images)
            calibration = logit_moments(source, batches)
    model.load_state_dict(convert_state_dict(source.state_dict(), model, method, calibration))
    if method == "calibrated":
        fit_projections(source, model.eval(), fit_images)
    if img_size is not None:
        model.set_input_size(img_size)
    return model.train(source.training)


def _keep_first(batches: Iterable[Tensor], limit: int, kept: list[Tensor]) -> Iterator[Tensor]:
    """Yield the batches, and append their first `limit` images to `kept`."""
    for batch in batches:
        missing = limit - sum(map(len, kept))
        if missing > 0:
            kept.append(batch[:missing])
        yield batch
