"""The conversions of a plain ViT that are worth comparing: every method, with halves and with the default widths."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import DiffAttention
from torch import Tensor, nn

from ..conversion.distillation import distill_layers
from ..conversion.surgery import head_width, is_basic
from ..layers.adapters import check_layers
from ..models.from_vit import from_vit

__all__ = ["list_conversions", "reason_against_pairs", "with_timm_attention"]


def list_conversions(source: Any, images: Sequence[Tensor]) -> dict[str, Callable[[], nn.Module]]:
    """List the conversions of a ViT, from the crudest to the most exact; `pairs` is last, where it is possible.

    Args:
        source: a plain network that `from_vit` converts.
        images: batches of images (n, C, H, W) to calibrate on, normalised as the source expects.

    Returns:
        Name of each conversion -> function that makes the converted network.
    """
    layers = list(check_layers(source).values())
    head_dim = head_width(layers[0])
    half, quarter = head_dim // 2, head_dim - head_dim * 3 // 4
    halves, wide = (half, half), (head_dim - quarter, quarter)  # the paper's widths, and those of converted networks

    def distilled() -> nn.Module:
        model = from_vit(source, images=images)
        distill_layers(source, model, images, passes=4)
        return model

    conversions: dict[str, Callable[[], nn.Module]] = {}
    if all(is_basic(layer) for layer in layers):
        conversions["timm, attn_layer='diff'"] = lambda: with_timm_attention(source)
    conversions |= {
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


def reason_against_pairs(source: Any) -> str | None:
    """Return why the heads of a network cannot be merged in pairs, or None if they can."""
    layers: dict[str, Any] = check_layers(source)
    for name, layer in layers.items():
        if not is_basic(layer):
            return f"{name}, a {type(layer).__name__}, is not timm's Attention without norms and gate"
        if layer.num_heads % 2:
            return f"the number of heads, {layer.num_heads}, is odd"
    return None


def with_timm_attention(source: Any) -> Any:
    """Return a copy of a plain ViT with timm's differential attention, which gets the same weights.

    It is the network of timm.create_model(..., attn_layer='diff') after load_state_dict(..., strict=False): the
    lambdas are random and the head norms are 1, because the source does not have them.

    Args:
        source: a plain network that `from_vit` converts.
    """
    model = copy.deepcopy(source)
    layers: dict[str, Any] = check_layers(model)
    for index, (name, plain) in enumerate(layers.items()):
        attn = DiffAttention(
            plain.qkv.in_features, plain.num_heads, qkv_bias=plain.qkv.bias is not None,
            proj_bias=plain.proj.bias is not None, attn_drop=plain.attn_drop.p, proj_drop=plain.proj_drop.p,
            depth=index,
        )  # fmt: skip
        attn.load_state_dict(plain.state_dict(), strict=False)
        model.set_submodule(name, attn.train(source.training))
    return model
