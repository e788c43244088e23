"""A plain ViT converted to a Diff-ViT of the same shape.

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

__all__ = ["from_vit"]

FIT_IMAGES = 256  # held in memory for the least squares of `calibrated`: images are read once


def from_vit(
    source: str | VisionTransformer,
    method: str | None = None,
    images: Tensor | Iterable[Tensor] | None = None,
    **model_kwargs,
) -> VisionTransformer:
    """A Diff-ViT of the shape of a plain ViT, with its weights converted.

    Args:
        source: a timm VisionTransformer, not changed, or the name of one to load (`local-dir:` and `hf-hub:` too).
        method: as in `convert_state_dict`; None is 'calibrated' where there are images, 'svd' where there are none,
            and 'mirror' with attn='diff_v2'.
        images: unlabelled images to calibrate on, (n, C, H, W), normalised as the source wants them, or batches of
            such, read once; 256 do. Of a batch that has targets, too, the first part.
        **model_kwargs: settings of the Diff-ViT: attn, lambda_init, branch_dims, drop_path_rate, ...; img_size
            resamples the position embedding.

    Returns:
        A DiffVisionTransformer on the source's device, in its dtype and mode, ready for timm's own saving.

    Raises:
        ValueError: a source that cannot be converted, with the reason; images where the method reads none, or none
            where it does.
    """
    if "conversion" in model_kwargs:
        raise ValueError(f"conversion={model_kwargs['conversion']!r} is create_model's name for it: pass it as method")
    method = resolve_method(method, model_kwargs.get("attn", "diff"), images is not None)
    img_size = model_kwargs.pop("img_size", None)
    if isinstance(source, str):
        source = timm.create_model(source, pretrained=True)
    check_source(source)
    args = vit_args(source)
    settings = [name for name in args if name.startswith("dynamic_") or name.endswith("_rate")]
    if shape := [name for name in model_kwargs if name in args and name not in settings]:
        raise ValueError(
            f"{shape[0]}={model_kwargs[shape[0]]!r} would change the shape, which is the source's: leave it out"
        )
    if method == "pairs":
        if source.attn_pool is not None:
            raise ValueError(
                "conversion 'pairs' halves the heads, and the attention pooling of this source would lose its"
            )
        args |= pairs_kwargs(args["num_heads"], source.embed_dim // args["num_heads"])
    cfg = getattr(source, "pretrained_cfg", None) or dict(
        input_size=(source.in_chans, *args["img_size"]), classifier="head", first_conv="patch_embed.proj"
    )
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
    seen: list[Tensor] = []
    if images is not None:
        if method == "pairs":
            calibration = head_pairs(source, images)
        else:
            batches = _keep_first(batches_for(source, images), FIT_IMAGES, seen)
            calibration = logit_moments(source, batches)
    model.load_state_dict(convert_state_dict(source.state_dict(), model, method, calibration))
    if method == "calibrated":
        fit_projections(source, model.eval(), seen)
    if img_size is not None:
        model.set_input_size(img_size)
    return model.train(source.training)


def _keep_first(batches: Iterable[Tensor], most: int, kept: list[Tensor]) -> Iterator[Tensor]:
    """The batches as they come; `kept` holds their first `most` images afterwards."""
    for batch in batches:
        room = most - sum(map(len, kept))
        if room > 0:
            kept.append(batch[:room])
        yield batch
