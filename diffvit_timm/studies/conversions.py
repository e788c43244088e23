"""The conversions of a plain ViT that are worth comparing: every method, with halves and with the default widths."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import DiffAttention
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..conversion.distillation import distill_layers
from ..models.from_vit import from_vit

__all__ = ["list_conversions", "reason_against_pairs", "with_timm_attention"]


def list_conversions(source: VisionTransformer, images: Sequence[Tensor]) -> dict[str, Callable[[], nn.Module]]:
    """List the conversions of a ViT, from the crudest to the most exact; `pairs` is last, where it is possible.

    Args:
        source: a network that passes `check_source`.
        images: batches of images (n, C, H, W) to calibrate on, normalised as the source expects.

    Returns:
        Name of each conversion -> function that makes the converted network.
    """
    head_dim = source.blocks[0].attn.head_dim
    half, quarter = head_dim // 2, head_dim - head_dim * 3 // 4
    halves, wide = (half, half), (head_dim - quarter, quarter)  # the paper's widths, and those of converted networks

    def distilled() -> nn.Module:
        model = from_vit(source, images=images)
        distill_layers(source, model, images, passes=4)
        return model

    conversions: dict[str, Callable[[], nn.Module]] = {
        "timm, attn_layer='diff'": lambda: with_timm_attention(source),
        f"slice, {halves}, lambda 0": lambda: from_vit(source, "slice", branch_dims=halves, lambda_init=0.0),
        f"svd, {halves}, lambda 0": lambda: from_vit(source, branch_dims=halves, lambda_init=0.0),
        f"svd, {halves}": lambda: from_vit(source, branch_dims=halves),
        f"svd, {wide} (data-free default)": lambda: from_vit(source),
        f"calibrated, {halves}": lambda: from_vit(source, images=images, branch_dims=halves),
        f"calibrated, {wide} (default)": lambda: from_vit(source, images=images),
        "calibrated, and 4 passes of distillation": distilled,
        "mirror, version 2": lambda: from_vit(source, attn="diff_v2"),
    }
    if reason_against_pairs(source) is None:
        conversions["pairs, neighbours"] = lambda: from_vit(source, "pairs")
        conversions["pairs, by their maps"] = lambda: from_vit(source, "pairs", images=images)
    return conversions


def reason_against_pairs(source: VisionTransformer) -> str | None:
    """Return why the heads of a ViT cannot be merged in pairs, or None if they can."""
    heads = source.blocks[0].attn.num_heads
    if heads % 2:
        return f"the number of heads, {heads}, is odd"
    return None if source.attn_pool is None else "the heads of its attention pooling would have to be merged, too"


def with_timm_attention(source: VisionTransformer) -> VisionTransformer:
    """Return a copy of a plain ViT with timm's differential attention, which gets the same weights.

    It is the network of timm.create_model(..., attn_layer='diff') after load_state_dict(..., strict=False): the
    lambdas are random and the head norms are 1, because the source does not have them.

    Args:
        source: a network that passes `check_source`.
    """
    model = copy.deepcopy(source)
    for index, block in enumerate(model.blocks):
        plain: Any = block.attn
        attn = DiffAttention(
            source.embed_dim, plain.num_heads, qkv_bias=plain.qkv.bias is not None,
            proj_bias=plain.proj.bias is not None, attn_drop=plain.attn_drop.p, proj_drop=plain.proj_drop.p,
            depth=index,
        )  # fmt: skip
        attn.load_state_dict(plain.state_dict(), strict=False)
        block.attn = attn.train(source.training)
    return model
