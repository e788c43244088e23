"""The conversions of a plain ViT that are worth comparing, and how fast the second branch of each would learn.

They are every method, with halves and with the default widths; timm's differential layer; and DnA's layer.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DiffAttention
from torch import Tensor, nn

from ..conversion.distillation import distill_layers
from ..conversion.surgery import check_method, head_width, is_basic
from ..layers.adapters import check_layers
from ..layers.adapters.projections import input_projections, mlp_rows, output_projection
from ..layers.base import DifferentialLayer
from ..layers.denoising import DenoisingAttention
from ..layers.hooks import evaluating
from ..models.from_vit import from_vit

__all__ = [
    "list_conversions",
    "query_gradient_ratio",
    "reason_against_contrast",
    "reason_against_pairs",
    "with_denoising_attention",
    "with_timm_attention",
]

COPY_SCALE = 1e-4  # of the negative queries and values at the start, as in DnA's conversion of timm's ViT-B


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
        conversions[f"DnA, copy scaled by {COPY_SCALE:g}"] = lambda: with_denoising_attention(source)
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
    if reason_against_contrast(source) is None:
        conversions["contrast, version 2"] = lambda: from_vit(source, "contrast", attn="diff_v2")
        conversions["contrast, version 2, calibrated"] = lambda: from_vit(source, "contrast", images, attn="diff_v2")
    if reason_against_pairs(source) is None:
        conversions["pairs, neighbours"] = lambda: from_vit(source, "pairs")
        conversions["pairs, by their maps"] = lambda: from_vit(source, "pairs", images=images)
    return conversions


def reason_against_pairs(source: Any) -> str | None:
    """Return why the heads of a network cannot be merged in pairs, or None if they can."""
    layers: dict[str, Any] = check_layers(source)
    for name, layer in layers.items():
        if not is_basic(layer):
            return f"{name}, of the class {type(layer).__name__}, is not timm's Attention without norms and gate"
        if layer.num_heads % 2:
            return f"the number of heads, {layer.num_heads}, is odd"
    return None


def reason_against_contrast(source: Any) -> str | None:
    """Return why the conversion 'contrast' does not apply to a network, or None if it does."""
    try:
        check_method(source, "contrast")
    except ValueError as error:
        return str(error)
    return None


def with_timm_attention(source: Any) -> Any:
    """Return a copy of a plain ViT with timm's differential attention, which gets the same weights.

    It is the network of timm.create_model(..., attn_layer='diff') after load_state_dict(..., strict=False): the
    lambdas are random and the head norms are 1, because the source does not have them.

    Args:
        source: a plain network that `from_vit` converts.
    """
    return _with_layers(source, _timm_layer)


def with_denoising_attention(source: Any) -> Any:
    """Return a copy of a plain ViT with denoising attention (DnA), as its authors start from pretrained weights.

    The negative queries and values are copies of the pretrained ones, scaled by COPY_SCALE.

    Args:
        source: a plain network whose attention is timm's Attention without norms and gate.
    """
    return _with_layers(source, lambda plain, index: _denoising_layer(plain))


def _with_layers(source: Any, make: Callable[[Any, int], nn.Module]) -> Any:
    """Return a copy of a network whose attention layers are replaced by what `make` makes of them and their index."""
    model = copy.deepcopy(source)
    for index, (name, plain) in enumerate(check_layers(model).items()):
        model.set_submodule(name, make(plain, index).to(next(plain.parameters())).train(source.training))
    return model


def _settings(plain: Any) -> dict[str, Any]:
    return dict(
        num_heads=plain.num_heads, qkv_bias=plain.qkv.bias is not None, proj_bias=plain.proj.bias is not None,
        attn_drop=plain.attn_drop.p, proj_drop=plain.proj_drop.p,
    )  # fmt: skip


def _timm_layer(plain: Any, depth: int) -> DiffAttention:
    layer = DiffAttention(plain.qkv.in_features, depth=depth, **_settings(plain))
    layer.load_state_dict(plain.state_dict(), strict=False)
    return layer


def _denoising_layer(plain: Any) -> DenoisingAttention:
    layer = DenoisingAttention(plain.qkv.in_features, **_settings(plain))
    state = layer.state_dict() | plain.state_dict()
    for name in ("qkv.weight", "qkv.bias"):
        if name in state:
            q, k, v = plain.state_dict()[name].chunk(3)
            state[name] = torch.cat([q, COPY_SCALE * q, k, v, COPY_SCALE * v])
    layer.load_state_dict(state)
    return layer


def query_gradient_ratio(model: Any, images: Tensor) -> float | None:
    """Compare the gradients of the queries of both branches: how fast the second branch begins to learn.

    Args:
        model: a network with two queries per head in its attention layers. It is in evaluation mode during the call.
        images: normalised images, (B, C, H, W).

    Returns:
        The root mean square of the gradient of the cross-entropy for the predicted classes, of the weights of the
        second queries, divided by that of the first; None for a network without a head.
    """
    if not model.num_classes:
        return None
    layers = [m for m in model.modules() if isinstance(m, (DifferentialLayer, DiffAttention, DenoisingAttention))]
    weights = [input_projections(layer)[0].weight for layer in layers]
    with torch.enable_grad(), evaluating(model):
        logits = model(images)  # (B, classes)
        gradients = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(dim=-1)), weights)
    pairs = [_split_queries(layer, gradient) for layer, gradient in zip(layers, gradients, strict=True)]
    first, second = (
        torch.cat([rows.flatten() for rows in branch]).square().mean() for branch in zip(*pairs, strict=True)
    )
    return (second / first).sqrt().item()


def _split_queries(layer: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Select the rows of the first and the second queries from those of a layer's input projection, (rows, dim)."""
    if isinstance(layer, DenoisingAttention):
        first, second, *_ = rows.chunk(5)
        return first, second
    if len(input_projections(layer)) == 1:  # the rows of keys and values follow
        rows = rows[mlp_rows(layer) : len(rows) - 2 * output_projection(layer).in_features]
    heads = rows.unflatten(0, (layer.num_heads, -1))  # (H, d, dim), or (H, 2 d, dim) in version 2
    order = getattr(layer, "channel_order", None)
    if order is not None:
        heads = heads.gather(1, order.long()[..., None].expand(heads.shape))
    d1 = layer.branch_dims[0] if getattr(layer, "branch_dims", None) else heads.shape[1] // 2
    return heads[:, :d1], heads[:, d1:]
