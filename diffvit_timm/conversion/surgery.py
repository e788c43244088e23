"""Replace the attention layers of a network by differential layers that are made from them. The rest does not change.

Version 2 is exact as 'mirror' for every layer with an adapter, because its output is linear in its maps: both maps of a
head start as the pretrained one. The rows of their difference sum to 1 - lambda, so the values are multiplied by
1 / (1 - lambda). If a norm acts on the values, the output projection is multiplied instead. That is the exception,
because a norm may stand before the output projection. 'contrast' multiplies the second query by a number (see
weights.py), which a norm of the queries would undo.

Version 1 has to divide the channels of each head between its two maps. How they may be mixed before that depends on the
layer:
    - Queries and keys that nothing acts on can be rotated together (`logit_rotation`).
    - A rotary embedding rotates pairs of channels, so whole pairs are chosen.
    - After a norm of queries and keys, and where the logits depend on single channels otherwise, these are chosen.
Channels and pairs are chosen by the energy that they contribute to the logits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from ..layers.adapters import ADAPTERS, check_layers
from ..layers.adapters.projections import output_projection, read_qkv, scale_output, write_qkv
from ..layers.attention import DifferentialAttention
from ..layers.attention_v2 import DifferentialAttentionV2
from ..layers.base import FROM_SCRATCH_ONLY, DifferentialLayer, attention_kind
from .weights import METHODS, convert_layer, default_lambda, has_energy, pair_queries, pairs_kwargs, rotate_heads

__all__ = [
    "channel_freedom",
    "check_method",
    "head_width",
    "is_basic",
    "make_layer",
    "refuse_plain_file",
    "replace_layers",
]

# Moments of queries and keys, (H, d, d) each, or the order of the heads for 'pairs'; None: from the weights only.
Calibration = tuple[Tensor, Tensor] | list[int] | None


def head_width(layer: Any) -> int:
    """Return the width of a head of a plain layer."""
    return output_projection(layer).in_features // layer.num_heads


def is_rotary(model: nn.Module) -> bool:
    """Return whether rotary embeddings act on the queries and keys of a network's rotary attention layers."""
    return getattr(model, "rope", True) is not None


def channel_freedom(layer: Any, rotary: bool = True) -> str:
    """Return what version 1 may do with the channels of a plain layer before it divides them.

    Args:
        layer: a plain layer with an adapter.
        rotary: whether a rotary embedding acts on it, if its class has one.

    Returns:
        'rotation', 'pairs' or 'channels', as at the top of this file.
    """
    adapter = ADAPTERS[type(layer)]
    if adapter.rotary_pairs and rotary:
        return "pairs"
    return "channels" if _normalises_queries(layer) or adapter.fixed_channels else "rotation"


def _normalises_queries(layer: Any) -> bool:
    """Return whether a plain layer normalises its queries or keys, so that a factor on their weights is lost."""
    norms = [getattr(layer, name, None) for name in ("q_norm", "k_norm")]
    return ADAPTERS[type(layer)].cosine or any(not isinstance(norm, (nn.Identity, type(None))) for norm in norms)


def check_method(model: nn.Module, method: str | None) -> dict[str, nn.Module]:
    """Return the self-attention layers of a plain network by their names, if a method can convert all of them.

    Raises:
        ValueError: as `check_layers`, or the first layer that the method does not apply to, and the reason.
    """
    if (own := attention_kind(model)) in FROM_SCRATCH_ONLY:
        raise ValueError(f"a network with attn={own!r} is not converted: it is made for training from scratch")
    layers: dict[str, Any] = check_layers(model)
    for name, layer in layers.items():
        kind = type(layer).__name__
        if method == "pairs" and not is_basic(layer):
            raise ValueError(f"{name}: conversion 'pairs' joins heads of timm's basic Attention, not of {kind}")
        if method == "pairs":
            pairs_kwargs(layer.num_heads, head_width(layer))  # it refuses an odd number of heads
        if method == "contrast" and _normalises_queries(layer):
            raise ValueError(
                f"{name}: conversion 'contrast' scales the queries, and this {kind} normalises them, which undoes the "
                "scale: choose 'mirror'"
            )
    return layers


def replace_layers(
    model: nn.Module,
    attn: str,
    method: str | None = None,
    calibration: Sequence[Calibration] | None = None,
    lambda_init: float | None = None,
    branch_dims: tuple[int, int] | None = None,
) -> nn.Module:
    """Replace every attention layer of a network, in place, by a differential layer with its converted weights.

    Args:
        model: a plain network of timm.
        attn: 'diff' (version 1) or 'diff_v2'.
        method: conversion method, as in `convert_state_dict`.
        calibration: what was measured on images for each layer, first layer first: moments of its queries and keys, or
            the order of its heads for 'pairs'.
        lambda_init: lambda at the start; None: that of `default_lambda`.
        branch_dims: widths of the two branches of a head, for version 1; None: three quarters and one quarter.

    Returns:
        The network.

    Raises:
        ValueError: a network that cannot be converted, or settings that do not fit it.
    """
    layers = check_method(model, method)
    rotary = is_rotary(model)
    for index, (name, plain) in enumerate(layers.items()):
        own = None if calibration is None else calibration[index]
        try:
            layer = make_layer(plain, attn, method, own, lambda_init, branch_dims, rotary)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        model.set_submodule(name, layer)
    # accelerate and FSDP keep the modules of these classes on one device
    model._no_split_modules = sorted({_block_class(model, name) for name in layers})  # type: ignore[assignment]
    if hasattr(model, "load_pretrained"):
        model.load_pretrained = refuse_plain_file
    return model


def _block_class(model: nn.Module, name: str) -> str:
    """Return the name of the class of the block that an attention layer is a part of, or that it is itself."""
    parent = name.rpartition(".")[0]
    while isinstance(model.get_submodule(parent), (nn.Sequential, nn.ModuleList)):
        parent = parent.rpartition(".")[0]
    block = model.get_submodule(parent or name)  # a layer in a list of the network itself is a block
    return type(block).__name__


@torch.jit.ignore
def refuse_plain_file(checkpoint_path: str, prefix: str = "") -> None:
    """Take the place of timm's `load_pretrained`, which would fill a differential network without converting.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"checkpoint_path={checkpoint_path} has the weights of a plain network: load it into the plain network, and "
        "convert that with from_vit"
    )


def make_layer(
    plain: Any,
    attn: str,
    method: str | None = None,
    calibration: Calibration = None,
    lambda_init: float | None = None,
    branch_dims: tuple[int, int] | None = None,
    rotary: bool = True,
) -> DifferentialLayer:
    """Make a differential layer from a plain one, whose weights it takes over.

    The arguments and errors are those of `replace_layers`, for one layer. `plain` must not be used afterwards.
    """
    method = method or METHODS[attn][0]
    if lambda_init is None:
        lambda_init = default_lambda(method)
    rounded = torch.tensor(lambda_init, dtype=torch.float32, device="cpu").item()  # as the layer stores it
    if not rounded < 1:
        raise ValueError(f"lambda_init={lambda_init:g} must be below 1, or the two maps cancel")
    if attn == "diff_v2" and branch_dims is not None:
        raise ValueError(f"branch_dims={branch_dims!r} is a setting of attn='diff': leave it out for attn='diff_v2'")
    if is_basic(plain):
        return _make_basic(plain, attn, method, calibration, lambda_init, branch_dims)
    head_dim = head_width(plain)
    q, k, v = read_qkv(plain, head_dim)  # (H, d, dim + 1) each
    width = q.shape[-1] - 1
    adapter = ADAPTERS[type(plain)]
    factor = 1 / (1 - rounded)
    if adapter.normed_values:
        scale_output(plain, factor)
    else:
        v = v * factor
    order = None
    if attn == "diff":
        freedom = channel_freedom(plain, rotary)
        branch_dims = _branch_widths(head_dim, branch_dims, freedom)
        if freedom == "rotation" and method != "slice":
            q, k = rotate_heads(q, k, calibration if isinstance(calibration, tuple) else None)
        elif method != "slice":
            order = _channel_order(plain, q, k, calibration if isinstance(calibration, tuple) else None, freedom)
        plain.__class__ = adapter.diff  # the layer keeps its modules, and timm still takes it for one of its own
        plain.add_branches(head_dim, lambda_init, branch_dims, ordered=freedom != "rotation")
        if order is not None:
            plain.channel_order.copy_(order)
    else:
        q = pair_queries(q, method)
        plain.__class__ = adapter.diff_v2
        plain.add_branches(width, lambda_init)
    write_qkv(plain, q, k, v)
    return plain


def is_basic(plain: nn.Module) -> bool:
    """Return whether a layer is timm's Attention without norms and gate, for which the package has its own layers."""
    return type(plain) is Attention and (
        all(isinstance(norm, nn.Identity) for norm in (plain.q_norm, plain.k_norm, plain.norm))
        and plain.gate is None
        and plain.attn_dim == plain.qkv.in_features == plain.proj.out_features
    )


def _make_basic(
    plain: Attention,
    attn: str,
    method: str,
    calibration: Calibration,
    lambda_init: float,
    branch_dims: tuple[int, int] | None,
) -> DifferentialLayer:
    """Make the paper's layer, or that of version 2, from timm's Attention without norms and gate."""
    settings: dict[str, Any] = {"num_heads": plain.num_heads}
    if method == "pairs":
        settings = pairs_kwargs(plain.num_heads, plain.head_dim) | ({"branch_dims": branch_dims} if branch_dims else {})
    elif attn == "diff":
        settings["branch_dims"] = _branch_widths(plain.head_dim, branch_dims, "rotation")
    kind: Any = DifferentialAttentionV2 if attn == "diff_v2" else DifferentialAttention
    if attn == "diff":
        settings["head_norm"] = False  # it would change the output of the pretrained heads
    weight = plain.qkv.weight
    layer = kind(
        plain.qkv.in_features,
        qkv_bias=plain.qkv.bias is not None,
        proj_bias=plain.proj.bias is not None,
        attn_drop=plain.attn_drop.p,
        proj_drop=plain.proj_drop.p,
        lambda_init=lambda_init,
        device=weight.device,
        dtype=weight.dtype,
        **settings,
    )
    if weight.device.type != "meta":
        layer.load_state_dict(convert_layer(plain.state_dict(), layer, method, calibration))
    return layer.train(plain.training)


def _branch_widths(head_dim: int, branch_dims: tuple[int, int] | None, freedom: str) -> tuple[int, int]:
    """Return the widths of the branches: those that were asked for, or three quarters and one quarter.

    Raises:
        ValueError: widths that do not sum to the width of a head, or that cut a pair of channels.
    """
    step = 2 if freedom == "pairs" else 1
    d1 = head_dim * 3 // 4 // step * step
    d1, d2 = branch_dims or (d1, head_dim - d1)
    if d1 + d2 != head_dim or min(d1, d2) < 1:
        raise ValueError(
            f"branch_dims=({d1}, {d2}) must be two positive widths that sum to {head_dim}, the width of a head"
        )
    if d1 % step:
        raise ValueError(f"branch_dims=({d1}, {d2}) must be even under a rotary embedding, which acts on pairs")
    return d1, d2


def _channel_order(plain: Any, q: Tensor, k: Tensor, moments: tuple[Tensor, Tensor] | None, freedom: str) -> Tensor:
    """Order the channels of each head by the energy that they contribute to the logits, highest first.

    Args:
        plain: the plain layer.
        q, k: weights of the heads with the bias as the last column, (H, d, dim + 1) each.
        moments: second moments of the queries and the centred keys after norms and rotary embedding, (H, d, d) each. If
            None, and for heads without energy, the tokens are assumed to be white (uncorrelated, of equal variance).
        freedom: 'pairs' or 'channels'.

    Returns:
        The order, (H, d). Pairs stay together.
    """
    heads = plain.num_heads
    # For white tokens x, E[(w . x)^2] = |w|^2. The bias of k adds the same number to all logits of a query.
    energy_q = _after_norm(q.square().sum(-1), getattr(plain, "q_norm", None))
    energy_k = _after_norm(k[..., :-1].square().sum(-1), getattr(plain, "k_norm", None))
    energy_k = energy_k.repeat_interleave(heads // len(energy_k), dim=0)  # heads may share their keys
    if moments is not None:
        measured = has_energy(moments)[:, None]
        shares = [moment.diagonal(dim1=-2, dim2=-1) for moment in moments]  # (H, d) each
        energy_q, energy_k = torch.where(measured, shares[0], energy_q), torch.where(measured, shares[1], energy_k)
    if freedom == "channels":
        return (energy_q * energy_k).argsort(dim=-1, descending=True, stable=True)
    # In a pair the embedding turns query and key by an angle that changes with their distance, so on average all four
    # products of their channels count: the energy of the pair is that of the query times that of the key.
    rotary_pairs = ADAPTERS[type(plain)].rotary_pairs
    assert rotary_pairs is not None
    pairs = rotary_pairs(plain, q.shape[1])  # (d / 2, 2)
    energy = energy_q[:, pairs].sum(-1) * energy_k[:, pairs].sum(-1)  # (H, d / 2)
    return pairs[energy.argsort(dim=-1, descending=True, stable=True)].flatten(1)  # (H, d)


def _after_norm(energy: Tensor, norm: Any) -> Tensor:
    """Return the energy of channels, (H, d), after a norm of the head: its weight acts on channels of mean energy 1."""
    weight = getattr(norm, "weight", None)
    if norm is None or isinstance(norm, nn.Identity):
        return energy
    energy = energy / energy.mean(-1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)  # a head may be all 0
    return energy if weight is None else energy * weight.detach().cpu().double().square()
