"""Adapters of timm's attention classes. Each holds everything that the package knows about one class.

An adapter is a subclass of timm's class with three methods, which also work on plain layers of the class:
    project_qkv    the arguments of forward -> queries, keys, values, and the bias of the logits or None
    merge_heads    outputs of the heads, and tokens -> input of the output projection
    attend         project_qkv, then differential attention, then merge_heads; only for differential layers
The factor on the logits is `scale` of the adapter or of the layer; projections.py finds the projections. An adapter
whose forward pass does not take tokens, (B, N, dim), has a method `tokens` that makes them.
To support another class, write its adapter and its two versions, and add them to ADAPTERS.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.layers import Attention, AttentionPoolLatent, AttentionPoolPrr, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.gemma4_vit import Gemma4Attention
from timm.models.swin_transformer import WindowAttention as SwinAttention
from timm.models.swin_transformer_v2 import WindowAttention as Swin2Attention
from timm.models.vision_transformer import ParallelScalingBlock
from timm.models.vision_transformer_relpos import RelPosAttention
from timm.models.vision_transformer_sam import Attention as SamAttention
from torch import Tensor, nn

from ..base import QUERY_PROJECTIONS, DifferentialLayer
from . import gemma4, parallel, relative, vit
from .projections import output_projection
from .timm_differential import TIMM_DIFFERENTIAL

__all__ = [
    "ADAPTERS",
    "Adapter",
    "adapter_of",
    "attention_output",
    "check_layers",
    "is_windowed",
    "known_layers",
    "plain_inputs",
]


class Adapter(NamedTuple):
    """The entry of an attention class in ADAPTERS.

    Attributes:
        view: the adapter, whose methods also work on plain layers.
        diff, diff_v2: classes of its differential layers, version 1 and version 2.
        rotary_pairs: function that returns the pairs of channels that a rotary embedding turns, (d / 2, 2), for a layer
            and the width d of a head; None for a class without such an embedding.
        fixed_channels: whether something other than a norm or a rotary embedding forbids a rotation of the channels.
        cosine: whether queries and keys are divided by their lengths.
        normed_values: whether a norm acts on the values.
        windowed: whether the layer attends within windows, each of which is a row of its input.
    """

    view: Any
    diff: Any
    diff_v2: Any
    rotary_pairs: Callable[[Any, int], Tensor] | None = None
    fixed_channels: bool = False
    cosine: bool = False
    normed_values: bool = False
    windowed: bool = False


def _pairs(layer: Any, d: int) -> Tensor:
    """Pairs of AttentionRope and EvaAttention: neighbours, or channels i and i + d / 2."""
    channels = torch.arange(d)
    return channels.view(2, d // 2).T if layer.rotate_half else channels.view(d // 2, 2)


def _axial_pairs(layer: Any, d: int) -> Tensor:
    """Pairs of Gemma4Attention: one half of the channels per axis, and in it channels i and i + d / 4."""
    return torch.arange(d).view(2, 2, d // 4).transpose(1, 2).flatten(0, 1)


ADAPTERS: dict[type[nn.Module], Adapter] = {
    Attention: Adapter(vit.AttentionAdapter, vit.DiffVitAttention, vit.DiffVitAttentionV2),
    AttentionRope: Adapter(vit.RopeAdapter, vit.DiffRopeAttention, vit.DiffRopeAttentionV2, _pairs),
    EvaAttention: Adapter(vit.EvaAdapter, vit.DiffEvaAttention, vit.DiffEvaAttentionV2, _pairs),
    Gemma4Attention: Adapter(
        gemma4.Gemma4Adapter, gemma4.DiffGemma4Attention, gemma4.DiffGemma4AttentionV2, _axial_pairs, normed_values=True
    ),
    ParallelScalingBlock: Adapter(parallel.ParallelAdapter, parallel.DiffParallelBlock, parallel.DiffParallelBlockV2),
    BeitAttention: Adapter(relative.BeitAdapter, relative.DiffBeitAttention, relative.DiffBeitAttentionV2),
    RelPosAttention: Adapter(relative.RelPosAdapter, relative.DiffRelPosAttention, relative.DiffRelPosAttentionV2),
    SamAttention: Adapter(  # its bias depends on all channels of the queries
        relative.SamAdapter, relative.DiffSamAttention, relative.DiffSamAttentionV2, fixed_channels=True, windowed=True
    ),
    SwinAttention: Adapter(
        relative.SwinAdapter, relative.DiffSwinAttention, relative.DiffSwinAttentionV2, windowed=True
    ),
    Swin2Attention: Adapter(
        relative.Swin2Adapter,
        relative.DiffSwin2Attention,
        relative.DiffSwin2AttentionV2,
        cosine=True,
        windowed=True,
    ),
}

# Attention that pools the tokens of the last layer. It is not self-attention, and remains plain.
POOLING = (AttentionPoolLatent, AttentionPoolPrr)

# Names of projections by which a layer is recognised as attention, also if its class has no adapter.
PROJECTIONS = (*QUERY_PROJECTIONS, "qk", "q", "proj")

# Why a class has no adapter, by the name of the class.
REASONS = {
    "TalkingHeadAttn": "it mixes its heads before and after the softmax",
    "XCA": "it attends over channels instead of tokens",
    "ChannelAttention": "it attends over channels instead of tokens",
    "ChannelAttentionV2": "it attends over channels instead of tokens",
    "CrossCovarianceAttn": "it attends over channels instead of tokens",
    "LinearSelfAttention": "it has no softmax map over pairs of tokens",
    "FactorAttnConvRelPosEnc": "it has no softmax map over pairs of tokens",
    "LiteMLA": "it has no softmax map over pairs of tokens",
    "GPSA": "it adds a second map to its softmax map",
    "OutlookAttention": "it computes its maps without queries and keys",
}


def adapter_of(layer: nn.Module) -> Adapter | None:
    """Return the adapter of a plain attention layer, or None. A subclass of timm's class does not count."""
    return ADAPTERS.get(type(layer))


def is_windowed(layer: nn.Module) -> bool:
    """Return whether an attention layer, plain or differential, attends within windows."""
    return any(isinstance(layer, kind) and adapter.windowed for kind, adapter in ADAPTERS.items())


def plain_inputs(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float]:
    """Compute the queries, keys, values, bias and scale of a plain layer.

    Args:
        layer: a plain layer with an adapter.
        args, kwargs: arguments of its forward pass.

    Returns:
        q, k and v, (B, H, N, d) each; the bias of the logits or None; and the scale of q . k in the logits.
    """
    view: Any = ADAPTERS[type(layer)].view
    return *view.project_qkv(layer, *args, **kwargs), getattr(layer, "scale", None) or view.scale


def attention_output(layer: Any, args: tuple, kwargs: dict) -> Tensor:
    """Compute the output of the output projection of a differential layer, (B, N, dim).

    For most layers it is the output of the layer. It does not contain the MLP of a parallel block.

    Args:
        layer: a differential layer.
        args, kwargs: arguments of its forward pass.
    """
    projected: Tensor = output_projection(layer)(layer.attend(*args, **kwargs))
    return projected


def known_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the self-attention layers of a network, plain and differential, by their names.

    Raises:
        ValueError: a network without such layers, or with one that the package does not know. The message names the
            layer and the reason.
    """
    known = (*ADAPTERS, *TIMM_DIFFERENTIAL)
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, DifferentialLayer) or type(module) in known:
            if type(module) is ParallelScalingBlock and module.attn_out_proj is None:
                raise ValueError(
                    f"{name} is a ParallelScalingBlock, and its attention and MLP share one output projection"
                )
            layers[name] = module
        elif _looks_like_attention(module) and not isinstance(module, POOLING):
            reason = REASONS.get(type(module).__name__, "the class has no adapter")
            raise ValueError(f"{_is_a(name, module)}, and {reason}")
    if not layers:
        raise ValueError("it has no self-attention layer of timm")
    return layers


def check_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the self-attention layers of a plain network by their names, if all of them can be converted.

    Raises:
        ValueError: as `known_layers`, or a network that is differential already.
    """
    kind = type(model).__name__
    for name, module in model.named_modules():
        if isinstance(module, (DifferentialLayer, *TIMM_DIFFERENTIAL)):
            raise ValueError(f"{kind} is differential already: {_is_a(name, module)}")
    try:
        return known_layers(model)
    except ValueError as error:
        raise ValueError(f"{kind} cannot be converted: {error}") from error


def _is_a(name: str, module: nn.Module) -> str:
    """Return a sentence with the name and the class of a module."""
    kind = type(module).__name__
    return f"{name} is {'an' if kind[0] in 'AEIOX' else 'a'} {kind}"


def _looks_like_attention(module: nn.Module) -> bool:
    """Return whether a module computes attention itself: it has heads and projections, and none of its parts has."""
    return _has_projections(module) and not any(
        _has_projections(part) for part in module.modules() if part is not module
    )


def _has_projections(module: nn.Module) -> bool:
    has_heads = hasattr(module, "num_heads") or hasattr(module, "heads")
    return has_heads and any(isinstance(getattr(module, name, None), nn.Module) for name in PROJECTIONS)
