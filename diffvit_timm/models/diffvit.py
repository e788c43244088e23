"""Differential Vision Transformers: timm's VisionTransformer with differential attention, as timm models.

    import timm, diffvit_timm
    model = timm.create_model('diffvit_small_patch16', pretrained=True, num_classes=37)
    plain = timm.create_model('diffvit_small_patch16', pretrained=True, num_classes=37, attn='plain')   # its plain twin

The pretrained tags stand for plain ViT checkpoints that timm hosts on the Hub. They are converted as they are loaded
(conversion/weights.py).

Papers: `Differential Transformer` - https://arxiv.org/abs/2410.05258
        `Differential Transformer V2` - https://huggingface.co/blog/microsoft/diff-attn-v2
        `An Image is Worth 16x16 Words` - https://arxiv.org/abs/2010.11929
"""

import dataclasses
from functools import partial

from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from timm.models.vision_transformer import checkpoint_filter_fn as vit_checkpoint_filter_fn
from torch import Tensor

from ..conversion.weights import (
    METHODS,
    convert_state_dict,
    default_lambda,
    is_differential,
    pairs_kwargs,
    resolve_method,
)
from ..layers.base import FROM_SCRATCH_ONLY
from ..layers.pos_embed import resample_axis
from .diff_vision_transformer import LEARNED_AXES, DiffVisionTransformer
from .layer_names import decode_layers

__all__ = ["FROM_SCRATCH", "GENERIC", "SOURCES", "converted_cfg", "timm_architecture"]

GENERIC = "diffvit"  # name of the architecture that rebuilds any converted network


def _check_keys(state_dict: dict[str, Tensor], model: DiffVisionTransformer) -> None:
    """Check that a checkpoint has exactly the tensors of the model, except for those of its head.

    timm loads with strict=False if num_classes differs, so a block that is missing in the checkpoint would stay random.
    Then the final norm is a part of the head, as for timm: with global_pool='avg' it stands behind the pooling, and
    starts anew.

    Raises:
        RuntimeError: missing or unexpected tensors.
    """
    head: tuple[str, ...] = ("head.",)
    if model.num_classes != model.pretrained_cfg.get("num_classes"):
        head = ("head.", "norm.", "fc_norm.")
    missing = [key for key in model.state_dict() if key not in state_dict and not key.startswith(head)]
    unexpected = [key for key in state_dict if key not in model.state_dict() and not key.startswith(head)]
    # A layer with the schedule has no lambda_init in its state dict, but loads one from a checkpoint.
    unexpected = [key for key in unexpected if not key.endswith(".lambda_init")]
    if missing or unexpected:
        hint = "; pass fc_norm=False to keep the checkpoint's final norm" if "fc_norm.weight" in missing else ""
        if any(key.endswith(".attn.sub_norm.weight") for key in unexpected):
            hint = "; pass head_norm=True, because the checkpoint has a norm of each head"
        raise RuntimeError(
            f"the checkpoint does not fit the model: missing {missing or 'nothing'}, "
            f"unexpected {unexpected or 'nothing'}{hint}"
        )


def _resample_axes(state_dict: dict[str, Tensor], model: DiffVisionTransformer) -> dict[str, Tensor]:
    """Resample the position embedding of pos_embed='learn_2d', one table per axis, to the model's grid."""
    axes = dict(zip(LEARNED_AXES, model.patch_embed.grid_size, strict=True))
    return {key: resample_axis(value, axes[key]) if key in axes else value for key, value in state_dict.items()}


def _require_own_weights(state_dict: dict[str, Tensor], attn: str) -> None:
    """Check that a checkpoint is one of the same attention, which no other can be converted to.

    Raises:
        RuntimeError: a checkpoint of another attention.
    """
    own = {"gated": ".attn.gate.weight", "dna": ".attn.negative_scale"}[attn]
    if not any(key.endswith(own) for key in state_dict):
        raise RuntimeError(f"attn={attn!r} has no pretrained weights: pass pretrained=False, or another attn")


def checkpoint_filter_fn(state_dict: dict, model: DiffVisionTransformer, method: str | None) -> dict[str, Tensor]:
    """Prepare a checkpoint for a model: convert it if it is a plain ViT's, and resample it to the model's grid.

    Args:
        state_dict: checkpoint of a plain ViT or of a Diff-ViT.
        model: the model that will load it.
        method: conversion method, as in `convert_state_dict`.

    Raises:
        RuntimeError: a checkpoint that does not fit the model.
        ValueError: a checkpoint that cannot be converted.
    """
    if model.has_stem and any(key.endswith("patch_embed.proj.weight") for key in state_dict):
        raise RuntimeError("the checkpoint has no stem, but one convolution as large as a patch: leave out `stem`")
    try:
        state_dict = vit_checkpoint_filter_fn(state_dict, model, adapt_layer_scale=True)
        state_dict = _resample_axes(state_dict, model)
        if model.attn == "plain" and is_differential(state_dict):
            raise RuntimeError("the checkpoint is a Diff-ViT's, but the model is plain: pass attn='diff'")
        if model.attn in FROM_SCRATCH_ONLY:
            _require_own_weights(state_dict, model.attn)
        elif model.attn != "plain" and not is_differential(state_dict):
            state_dict = convert_state_dict(state_dict, model, method)
    except TypeError as error:  # timm catches a TypeError and calls the filter again without the model
        raise RuntimeError(f"the checkpoint could not be converted: {error}") from error
    _check_keys(state_dict, model)
    return state_dict


def _create_diffvit(
    variant: str, pretrained: bool = False, conversion: str | None = None, attn: str = "diff", **kwargs
) -> DiffVisionTransformer:
    """Create a variant with the defaults of converted networks; pretrained weights are converted as they are loaded.

    By default branch 1 has three quarters of a head (top-1 agreement with DeiT-Ti on Pets images, converted without
    images: 94 %, and 87 % with halves). Lambda starts at 0.05. There is no head norm, because it would change the
    output of the pretrained heads. The paper's network is `head_norm=True, lambda_init='schedule',
    branch_dims=(d / 2, d / 2)` with head width d. conversion='pairs' makes half as many heads.
    """
    kwargs = decode_layers(kwargs)
    if attn == "diff":
        heads: int = kwargs["num_heads"]
        head_dim = kwargs["embed_dim"] // heads
        d1 = head_dim * 3 // 4
        if conversion == "pairs":
            if kwargs.get("branch_dims") is not None:
                raise ValueError("conversion 'pairs' gives each head of a pair one branch: leave out branch_dims")
            kwargs.update(pairs_kwargs(heads, head_dim))
        kwargs = dict(head_norm=False, lambda_init=0.05, branch_dims=(d1, head_dim - d1)) | kwargs
    if conversion is not None and attn in ("plain", *FROM_SCRATCH_ONLY):
        raise ValueError(f"conversion={conversion!r} is for differential attention: leave it out with attn={attn!r}")
    method = None
    if attn in METHODS:  # the model itself refuses an unknown attn
        method = resolve_method(conversion, attn)
        if attn == "diff_v2" and kwargs.get("lambda_init") is None:
            kwargs["lambda_init"] = default_lambda(method)
    return build_model_with_cfg(
        DiffVisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=partial(checkpoint_filter_fn, method=method),
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        attn=attn,
        **kwargs,
    )


def _create_from_scratch(variant: str, pretrained: bool, **kwargs) -> DiffVisionTransformer:
    """Create a variant without checkpoints, with the paper's equal halves and lambda schedule, but without a head norm.

    In trainings of 600 updates on CIFAR-10, the head norm cost 3.7 points.
    """
    settings: dict = {}
    if kwargs.get("attn", "diff") == "diff":
        half = kwargs["embed_dim"] // kwargs["num_heads"] // 2
        settings = dict(head_norm=False, lambda_init="schedule", branch_dims=(half, half))
    model = _create_diffvit(variant, pretrained=pretrained, **{**settings, **kwargs})
    model._model_args = settings  # timm adds what it was given; a saved network must not change with these defaults
    return model


def converted_cfg(source: str) -> PretrainedCfg:
    """Return the pretrained config of a plain ViT that timm hosts, with its mean, std, crop and interpolation."""
    cfg = get_pretrained_cfg(source)
    return dataclasses.replace(cfg, url="", custom_load=False, architecture=None, tag=None)


# The plain checkpoint behind each pretrained tag. The first tag of a variant is its default.
SOURCES = {
    "diffvit_tiny_patch16.augreg_in21k_ft_in1k": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "diffvit_tiny_patch16.augreg_in21k": "vit_tiny_patch16_224.augreg_in21k",
    "diffvit_tiny_patch16.deit_in1k": "deit_tiny_patch16_224.fb_in1k",
    "diffvit_small_patch16.augreg_in21k_ft_in1k": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "diffvit_small_patch16.augreg_in21k": "vit_small_patch16_224.augreg_in21k",
    "diffvit_small_patch16.augreg_in1k": "vit_small_patch16_224.augreg_in1k",
    "diffvit_small_patch16.deit_in1k": "deit_small_patch16_224.fb_in1k",
    "diffvit_small_patch16.dino": "vit_small_patch16_224.dino",
    "diffvit_base_patch16.augreg2_in21k_ft_in1k": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "diffvit_base_patch16.augreg_in21k_ft_in1k": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "diffvit_base_patch16.augreg_in21k": "vit_base_patch16_224.augreg_in21k",
    "diffvit_base_patch16.augreg_in1k": "vit_base_patch16_224.augreg_in1k",
    "diffvit_base_patch16.deit_in1k": "deit_base_patch16_224.fb_in1k",
    "diffvit_base_patch16.dino": "vit_base_patch16_224.dino",
    "diffvit_base_patch16.mae": "vit_base_patch16_224.mae",
    "diffvit_base_patch32.augreg_in21k_ft_in1k": "vit_base_patch32_224.augreg_in21k_ft_in1k",
    "diffvit_base_patch32.augreg_in21k": "vit_base_patch32_224.augreg_in21k",
    "diffvit_base_patch32.augreg_in1k": "vit_base_patch32_224.augreg_in1k",
    "diffvit_large_patch16.augreg_in21k_ft_in1k": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "diffvit_large_patch16.augreg_in21k": "vit_large_patch16_224.augreg_in21k",
    "diffvit_large_patch16.mae": "vit_large_patch16_224.mae",
    "diffvit_small_patch16_deit3.in22k_ft_in1k": "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "diffvit_small_patch16_deit3.in1k": "deit3_small_patch16_224.fb_in1k",
    "diffvit_base_patch16_deit3.in22k_ft_in1k": "deit3_base_patch16_224.fb_in22k_ft_in1k",
    "diffvit_base_patch16_deit3.in1k": "deit3_base_patch16_224.fb_in1k",
    "diffvit_large_patch16_deit3.in22k_ft_in1k": "deit3_large_patch16_224.fb_in22k_ft_in1k",
    "diffvit_large_patch16_deit3.in1k": "deit3_large_patch16_224.fb_in1k",
    "diffvit_base_patch16_clip.laion2b_ft_in12k_in1k": "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
    "diffvit_base_patch16_clip.openai_ft_in12k_in1k": "vit_base_patch16_clip_224.openai_ft_in12k_in1k",
    "diffvit_base_patch16_clip.laion2b": "vit_base_patch16_clip_224.laion2b",
    "diffvit_base_patch16_clip_quickgelu.openai": "vit_base_patch16_clip_quickgelu_224.openai",
    "diffvit_base_patch32_clip.laion2b_ft_in12k_in1k": "vit_base_patch32_clip_224.laion2b_ft_in12k_in1k",
    "diffvit_base_patch32_clip.laion2b": "vit_base_patch32_clip_224.laion2b",
    "diffvit_base_patch32_clip_quickgelu.openai": "vit_base_patch32_clip_quickgelu_224.openai",
}
# The variants of version 2 convert the same checkpoints.
SOURCES |= {
    name.replace("diffvit_", "diffvit2_"): source
    for name, source in SOURCES.items()
    if name.split(".")[0] in ("diffvit_tiny_patch16", "diffvit_small_patch16", "diffvit_base_patch16")
}

# Variants without checkpoints, with the channels, height and width of their images.
FROM_SCRATCH = {
    "diffvit_nano": (1, 28, 28),
    "diffvit_micro_patch2_32": (3, 32, 32),
    "diffvit_micro_patch4_32": (3, 32, 32),
    "diffvit_micro_patch8_32": (3, 32, 32),
    "diffvit_10m_patch8_224": (3, 224, 224),
    "diffvit_25m_patch8_224": (3, 224, 224),
    "diffvit_50m_patch8_224": (3, 224, 224),
    "diffvit_10m_patch16_512": (3, 512, 512),
    "diffvit_25m_patch16_512": (3, 512, 512),
    "diffvit_50m_patch16_512": (3, 512, 512),
}


def timm_architecture(variant: str) -> str:
    """Return the name of timm's own architecture of a variant's plain twin, which may have other sizes."""
    source = next((source for tag, source in SOURCES.items() if tag.split(".")[0] == variant), "vit_tiny_patch16_224")
    return source.split(".")[0]


def _scratch_cfg(input_size: tuple[int, int, int]) -> PretrainedCfg:
    """Return the config of a variant without checkpoints."""
    return PretrainedCfg(
        input_size=input_size,
        fixed_input_size=True,  # timm then creates the model for images of this size
        num_classes=10,
        mean=(0.5,) * input_size[0],
        std=(0.5,) * input_size[0],
        crop_pct=1.0,
        interpolation="bicubic",
        first_conv="patch_embed.proj",
        classifier="head",
    )


default_cfgs = generate_default_cfgs(
    {name: converted_cfg(source) for name, source in SOURCES.items()}
    | {name: _scratch_cfg(input_size) for name, input_size in FROM_SCRATCH.items()}
)


# Shapes that variants of both versions have.
TINY = dict(patch_size=16, embed_dim=192, depth=12, num_heads=3)
SMALL = dict(patch_size=16, embed_dim=384, depth=12, num_heads=6)
BASE = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)


@register_model
def diffvit_tiny_patch16(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-Ti/16, converted from ViT and DeiT checkpoints."""
    return _create_diffvit("diffvit_tiny_patch16", pretrained=pretrained, **dict(TINY, **kwargs))


@register_model
def diffvit_small_patch16(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-S/16, converted from ViT, DeiT and DINO checkpoints."""
    return _create_diffvit("diffvit_small_patch16", pretrained=pretrained, **dict(SMALL, **kwargs))


@register_model
def diffvit_base_patch16(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-B/16, converted from ViT, DeiT, DINO and MAE checkpoints."""
    return _create_diffvit("diffvit_base_patch16", pretrained=pretrained, **dict(BASE, **kwargs))


@register_model
def diffvit_base_patch32(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-B/32, converted from ViT checkpoints."""
    model_args = dict(patch_size=32, embed_dim=768, depth=12, num_heads=12)
    return _create_diffvit("diffvit_base_patch32", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_large_patch16(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-L/16, converted from ViT and MAE checkpoints."""
    model_args = dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16)
    return _create_diffvit("diffvit_large_patch16", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_small_patch16_deit3(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-S/16 with layer scale, converted from DeiT-3 checkpoints."""
    model_args = dict(patch_size=16, embed_dim=384, depth=12, num_heads=6, no_embed_class=True, init_values=1e-6)
    return _create_diffvit("diffvit_small_patch16_deit3", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_base_patch16_deit3(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-B/16 with layer scale, converted from DeiT-3 checkpoints."""
    model_args = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12, no_embed_class=True, init_values=1e-6)
    return _create_diffvit("diffvit_base_patch16_deit3", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_large_patch16_deit3(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-L/16 with layer scale, converted from DeiT-3 checkpoints."""
    model_args = dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16, no_embed_class=True, init_values=1e-6)
    return _create_diffvit("diffvit_large_patch16_deit3", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_base_patch16_clip(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-B/16 with pre-norm, converted from CLIP image towers."""
    model_args = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12, pre_norm=True, norm_eps=1e-5)
    return _create_diffvit("diffvit_base_patch16_clip", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_base_patch16_clip_quickgelu(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-B/16 with pre-norm and QuickGELU, converted from OpenAI's CLIP image tower."""
    model_args = dict(
        patch_size=16, embed_dim=768, depth=12, num_heads=12, pre_norm=True, norm_eps=1e-5, act_layer="quick_gelu"
    )
    return _create_diffvit("diffvit_base_patch16_clip_quickgelu", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_base_patch32_clip(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-B/32 with pre-norm, converted from CLIP image towers."""
    model_args = dict(patch_size=32, embed_dim=768, depth=12, num_heads=12, pre_norm=True, norm_eps=1e-5)
    return _create_diffvit("diffvit_base_patch32_clip", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_base_patch32_clip_quickgelu(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-B/32 with pre-norm and QuickGELU, converted from OpenAI's CLIP image tower."""
    model_args = dict(
        patch_size=32, embed_dim=768, depth=12, num_heads=12, pre_norm=True, norm_eps=1e-5, act_layer="quick_gelu"
    )
    return _create_diffvit("diffvit_base_patch32_clip_quickgelu", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit2_tiny_patch16(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-Ti/16, version 2, converted from the checkpoints of diffvit_tiny_patch16."""
    model_args = dict(TINY, attn="diff_v2")
    return _create_diffvit("diffvit2_tiny_patch16", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit2_small_patch16(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-S/16, version 2, converted from the checkpoints of diffvit_small_patch16."""
    model_args = dict(SMALL, attn="diff_v2")
    return _create_diffvit("diffvit2_small_patch16", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit2_base_patch16(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """Diff-ViT-B/16, version 2, converted from the checkpoints of diffvit_base_patch16."""
    model_args = dict(BASE, attn="diff_v2")
    return _create_diffvit("diffvit2_base_patch16", pretrained=pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_nano(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """37 k parameters, for grey images of 28 x 28 pixels such as MNIST."""
    model_args = dict(patch_size=4, embed_dim=32, depth=4, num_heads=2, mlp_ratio=2)
    return _create_from_scratch("diffvit_nano", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_micro_patch2_32(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """0.8 M parameters, for images of 32 x 32 pixels such as CIFAR, 256 patches."""
    model_args = dict(patch_size=2, embed_dim=128, depth=6, num_heads=4, mlp_ratio=2)
    return _create_from_scratch("diffvit_micro_patch2_32", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_micro_patch4_32(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """0.8 M parameters, for images of 32 x 32 pixels such as CIFAR, 64 patches."""
    model_args = dict(patch_size=4, embed_dim=128, depth=6, num_heads=4, mlp_ratio=2)
    return _create_from_scratch("diffvit_micro_patch4_32", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_micro_patch8_32(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """0.8 M parameters, for images of 32 x 32 pixels such as CIFAR, 16 patches."""
    model_args = dict(patch_size=8, embed_dim=128, depth=6, num_heads=4, mlp_ratio=2)
    return _create_from_scratch("diffvit_micro_patch8_32", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_10m_patch8_224(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """11 M parameters, 784 patches, for scaling on CIFAR-100."""
    model_args = dict(patch_size=8, embed_dim=384, depth=6, num_heads=6)
    return _create_from_scratch("diffvit_10m_patch8_224", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_25m_patch8_224(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """26 M parameters, 784 patches, for scaling on CIFAR-100."""
    model_args = dict(patch_size=8, embed_dim=512, depth=8, num_heads=8)
    return _create_from_scratch("diffvit_25m_patch8_224", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_50m_patch8_224(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """50 M parameters, 784 patches, for scaling on CIFAR-100."""
    model_args = dict(patch_size=8, embed_dim=640, depth=10, num_heads=10)
    return _create_from_scratch("diffvit_50m_patch8_224", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_10m_patch16_512(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """11 M parameters, 1,024 patches, for scaling on BACH."""
    model_args = dict(patch_size=16, embed_dim=384, depth=6, num_heads=6)
    return _create_from_scratch("diffvit_10m_patch16_512", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_25m_patch16_512(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """26 M parameters, 1,024 patches, for scaling on BACH."""
    model_args = dict(patch_size=16, embed_dim=512, depth=8, num_heads=8)
    return _create_from_scratch("diffvit_25m_patch16_512", pretrained, **dict(model_args, **kwargs))


@register_model
def diffvit_50m_patch16_512(pretrained: bool = False, **kwargs) -> DiffVisionTransformer:
    """50 M parameters, 1,024 patches, for scaling on BACH."""
    model_args = dict(patch_size=16, embed_dim=640, depth=10, num_heads=10)
    return _create_from_scratch("diffvit_50m_patch16_512", pretrained, **dict(model_args, **kwargs))
