"""Conversion of the weights of a plain ViT into those of a Diff-ViT.

A head of width d has the logits `q . k / sqrt(d)`. A joint rotation of q and k does not change them, so it can be
chosen to put as much of the logits as possible into the first d1 channels. Branch 1 is then close to the pretrained
map, and branch 2, the remaining d2 channels, starts as a weak correction under a small lambda. Version 2 has enough
queries for two complete maps, so it can represent the pretrained network exactly.

In a mirror both maps are equal, so no attention is negative. 'contrast' gives the second map the query c q with c < 0.
With the pretrained logits s, and a bias or mask b, the maps are A1 = softmax(s + b) and A2 = softmax(c s + b). A2 is
largest where A1 is smallest, and there A1 - lambda A2 is negative. As c falls, the negative share of the attention
approaches lambda / (1 + lambda). With values that are multiplied by 1 / (1 - lambda), the output changes by

    (A1 - lambda A2) v / (1 - lambda) - A1 v = lambda / (1 - lambda) (A1 - A2) v,

which is proportional to a small lambda. Least squares on the output projection remove a part of it.
"""

from collections.abc import Mapping, Sequence

import torch
from timm.models import VisionTransformer
from torch import Tensor

from ..layers.attention import DifferentialAttention
from ..layers.base import DifferentialLayer
from ..layers.token_layer import TokenLayer

__all__ = [
    "METHODS",
    "READS_IMAGES",
    "convert_layer",
    "convert_state_dict",
    "default_lambda",
    "has_energy",
    "is_differential",
    "logit_rotation",
    "pair_queries",
    "pairs_kwargs",
    "resolve_method",
    "rotate_heads",
]

# Factor of the second queries of 'contrast'. DeiT-Ti keeps 97.0 % of its top-1 classes on Pets (partial) with -3 and
# lambda 0.04, and 96.5 % with -2 and lambda 0.05; its attention is equally negative.
CONTRAST = -3.0

# The conversion methods of each attention. The first is the default without images.
METHODS = {"diff": ("svd", "slice", "pairs", "calibrated"), "diff_v2": ("mirror", "contrast")}

# The methods that use images; `calibrated` needs them.
READS_IMAGES = ("calibrated", "contrast", "pairs")


def resolve_method(method: str | None, attn: str, with_images: bool = False) -> str:
    """Check a conversion method, or choose the default.

    Args:
        method: name of the method. None and 'auto' choose the default: 'calibrated' with images and 'svd' without them
            for attn='diff', 'mirror' for attn='diff_v2'.
        attn: attention to convert to.
        with_images: whether there are images to calibrate on.

    Returns:
        The name of the method.

    Raises:
        ValueError: an unknown attention, a method that it does not have, a method that needs images without images, or
            images for a method that does not use them.
    """
    if attn not in METHODS:
        raise ValueError(f"attn={attn!r} is not a conversion target: choose {' or '.join(map(repr, METHODS))}")
    if method in (None, "auto"):
        method = "calibrated" if with_images and attn == "diff" else METHODS[attn][0]
    if method not in METHODS[attn]:
        choices = "; ".join(f"attn={a!r} has {', '.join(map(repr, m))}" for a, m in METHODS.items())
        raise ValueError(f"conversion {method!r} is not one of attn={attn!r}: {choices}")
    if method == "calibrated" and not with_images:
        raise ValueError("conversion 'calibrated' needs images: pass images to from_vit, or choose 'svd'")
    if with_images and method not in READS_IMAGES:
        choices = " or ".join(repr(name) for name in METHODS[attn] if name in READS_IMAGES)
        raise ValueError(f"conversion {method!r} does not use images: leave them out, or choose {choices}")
    return method


def default_lambda(method: str) -> float:
    """Return lambda at the start of a converted network, if none is given."""
    return {"mirror": 0.5, "contrast": 0.04}.get(method, 0.05)


def _matrix_root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and pseudo-inverse square root of symmetric positive semi-definite matrices, (..., d, d) each."""
    values, vectors = torch.linalg.eigh(gram)  # (..., d) and (..., d, d)
    # Eigenvalues below the rounding error count as 0, and so does their reciprocal.
    floor = values.amax(-1, keepdim=True) * gram.shape[-1] * torch.finfo(gram.dtype).eps
    root = values.clamp(min=0).sqrt()
    inverse = torch.where(values > floor, root.reciprocal(), 0.0)
    return (vectors * root.unsqueeze(-2)) @ vectors.mT, (vectors * inverse.unsqueeze(-2)) @ vectors.mT


def logit_rotation(gram_q: Tensor, gram_k: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the joint rotation of q and k that sorts their channels by their share of the logits.

    Let G_q^1/2 G_k^1/2 = U S V^T. Channel i of the rotated pair carries S_i^2 of the logits' energy E[(q . k)^2], and
    no other i + 1 channels carry more than channels 0 to i (Eckart and Young, 1936).

    Args:
        gram_q: E[q q^T] of each head, (H, d, d).
        gram_k: E[k k^T] of each head, (H, d, d), of keys that were centred first. Centring adds the same number to all
            logits of a query, which does not change its softmax.

    Returns:
        (R_q, R_k), (H, d, d) each. (R_q q) . (R_k k) = q . k if q and k lie in the ranges of the Gram matrices.
    """
    root_q, inverse_q = _matrix_root(gram_q)
    root_k, inverse_k = _matrix_root(gram_k)
    u, s, vh = torch.linalg.svd(root_q @ root_k)  # (H, d, d), (H, d), (H, d, d)
    half = s.sqrt().unsqueeze(-1)  # (H, d, 1), so that q and k share the singular values equally
    return half * (u.mT @ inverse_q), half * (vh @ inverse_k)


def is_differential(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is that of a Diff-ViT, either of this package or of timm."""
    return any(key.endswith((".lambda_q1", ".lambda_a", ".lambda_proj.weight")) for key in state_dict)


def has_energy(moments: tuple[Tensor, Tensor]) -> Tensor:
    """Return for each head whether its queries and its keys both differ from 0.

    Args:
        moments: second moments of the queries and of the keys, (H, d, d) each.

    Returns:
        Truth values, (H,).
    """
    energy_q, energy_k = (moment.diagonal(dim1=-2, dim2=-1).sum(-1) for moment in moments)
    return (energy_q > 0) & (energy_k > 0)


def rotate_heads(q: Tensor, k: Tensor, moments: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Rotate the heads so that their first channels carry the most of the logits.

    Args:
        q, k: weights of the heads with the bias as the last column, (H, d, dim + 1) each.
        moments: second moments of the queries and keys, (H, d, d) each. If None, and for heads whose measured energy is
            0, the tokens are assumed to be white.

    Returns:
        The rotated q and k. The bias of k is 0.
    """
    # For white tokens x, E[q q^T] = W W^T. The bias of q is the weight of a constant 1 beside x. The bias of k adds the
    # same number to all logits of a query, so it is left out.
    white = q @ q.mT, k[..., :-1] @ k[..., :-1].mT
    if moments is None:
        moments = white
    else:
        measured = has_energy(moments)[:, None, None]
        moments = torch.where(measured, moments[0], white[0]), torch.where(measured, moments[1], white[1])
    rotate_q, rotate_k = logit_rotation(*moments)  # (H, d, d) each
    k = rotate_k @ k
    k[..., -1] = 0
    return rotate_q @ q, k


def pair_queries(q: Tensor, method: str) -> Tensor:
    """Make the two queries of each head of version 2.

    Args:
        q: weights of the pretrained queries with the bias as the last column, (H, d, dim + 1).
        method: 'mirror' or 'contrast'.

    Returns:
        (2 H, d, dim + 1); those of head i are at 2i and 2i + 1.
    """
    return torch.stack([q, CONTRAST * q if method == "contrast" else q], dim=1).flatten(0, 1)


def convert_layer(
    plain: dict[str, Tensor],
    layer: TokenLayer,
    method: str,
    calibration: tuple[Tensor, Tensor] | list[int] | None,
) -> dict[str, Tensor]:
    """Convert the state dict of timm's Attention into that of `layer`; the names have no prefix."""
    plain = {name: tensor.cpu() for name, tensor in plain.items()}  # some devices do not have float64
    weight = plain["qkv.weight"]  # (3 * dim, dim)
    bias = plain.get("qkv.bias", weight.new_zeros(weight.shape[0]))
    dim = weight.shape[1]
    num_heads = layer.num_heads * (2 if method == "pairs" else 1)
    head_dim = dim // num_heads
    # The bias is the last column of each head, so that a rotation of the rows includes it: (H, head_dim, dim + 1) each.
    q, k, v = torch.cat([weight, bias.unsqueeze(-1)], dim=-1).double().reshape(3, num_heads, head_dim, dim + 1)
    proj = plain["proj.weight"].double()  # (dim, dim)

    if method in ("svd", "calibrated"):
        assert not isinstance(calibration, list)
        q, k = rotate_heads(q, k, calibration)
    elif method == "pairs" and calibration is not None:
        # Two neighbouring heads become one, so the heads are put in the order of their pairs.
        q, k, v = q[calibration], k[calibration], v[calibration]
        proj = proj.reshape(dim, num_heads, -1)[:, calibration].flatten(1)
    elif method in METHODS["diff_v2"]:
        q = pair_queries(q, method)
    q = q * (head_dim**-0.5 / layer.scale)  # keep the softmax scale of the pretrained head

    state: dict[str, Tensor] = {name: tensor.cpu().clone() for name, tensor in layer.state_dict().items()}
    # Tensors that the conversion can create. Every other tensor must be in both layers.
    created = {"qkv.bias", "proj.bias", *(name for name in state if name.startswith(("lambda_", "branch_")))}
    unmatched = (plain.keys() - state.keys()) | (state.keys() - plain.keys() - created)
    if unmatched:
        names = ", ".join(sorted(unmatched))
        raise ValueError(f"{names}: only in one of source and model; give both the same settings")
    # The dtype is that of the layer, not of the checkpoint: rounding the rotated weights of a checkpoint in half
    # precision to half precision a second time would lose more.
    dtype = layer.qkv.weight.dtype
    rows = torch.cat([heads.reshape(-1, dim + 1) for heads in (q, k, v)]).to(dtype)  # (3 or 4 * dim, dim + 1)
    state["qkv.weight"] = rows[:, :-1].contiguous()
    if "qkv.bias" in state:
        state["qkv.bias"] = rows[:, -1].contiguous()
    # The rows of A1 - lambda A2 sum to 1 - lambda, so the output projection is divided by 1 - lambda.
    state["proj.weight"] = (proj / (1 - layer.lambda_init.item())).to(dtype)
    if "proj.bias" in state:
        state["proj.bias"] = plain.get("proj.bias", torch.zeros_like(state["proj.bias"]))
    if isinstance(layer, DifferentialAttention):
        # With equal pairs of vectors lambda is exactly lambda_init. They are not zero, so that they have gradients.
        state["lambda_q2"], state["lambda_k2"] = state["lambda_q1"].clone(), state["lambda_k1"].clone()
    else:
        state["lambda_proj.weight"].zero_()  # so that lambda is lambda_init for every token
    return state


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    model: VisionTransformer,
    method: str | None = None,
    calibration: Sequence[tuple[Tensor, Tensor]] | Sequence[list[int]] | None = None,
) -> dict[str, Tensor]:
    """Convert the weights of a plain ViT into those of a Diff-ViT of the same shape.

    The methods for attn='diff':
        - 'svd' rotates each head so that branch 1 carries the most of the logits (see `logit_rotation`). It uses only
          the weights.
        - 'calibrated' does the same for the tokens of real images. `from_vit` then also fits the output projections
          (see `fit_projections`).
        - 'slice' cuts the channels of each head in their order. It is the naive baseline.
        - 'pairs' makes one head of two, one per branch, as in the paper's networks of equal size. `model` has half as
          many heads as the source.

    The methods for attn='diff_v2':
        - 'mirror' gives both branches the pretrained map. The network computes exactly the source's function.
        - 'contrast' gives branch 2 the pretrained query times a negative number, so that it attends to what branch 1
          ignores, and a part of the attention is negative from the start. With images, `from_vit` then fits the output
          projections (see `fit_projections`).

    Args:
        state_dict: weights of a plain timm VisionTransformer; they are not changed.
        model: a DiffVisionTransformer, whose attention layers define the number of heads, the branch widths and
            lambda_init.
        method: conversion method; None chooses the default of `resolve_method`.
        calibration: the result of `logit_moments` for 'calibrated', or of `head_pairs` for 'pairs'. Without it 'pairs'
            joins neighbouring heads.

    Returns:
        A state dict for `model`.

    Raises:
        ValueError: an unknown method or one of another attention, 'calibrated' without moments, or a layer that cannot
            represent pretrained heads.
        RuntimeError: the checkpoint does not have exactly the weights of plain attention layers.
    """
    method = resolve_method(method, model.attn, calibration is not None)
    converted = dict(state_dict)
    for index, block in enumerate(model.blocks):
        layer = block.attn
        _check_layer(layer, method)
        prefix = f"blocks.{index}.attn."
        plain = {key.removeprefix(prefix): converted.pop(key) for key in state_dict if key.startswith(prefix)}
        if any(key.startswith(("q_norm.", "k_norm.")) for key in plain):
            raise ValueError("the source normalises its queries and keys (qk_norm), so its logits cannot be split")
        required, optional = {"qkv.weight", "proj.weight"}, {"qkv.bias", "proj.bias"}
        if wrong := required - plain.keys() | plain.keys() - required - optional:
            raise RuntimeError(f"{prefix}*: {', '.join(sorted(wrong))} missing or unknown to a plain attention layer")
        state = convert_layer(plain, layer, method, None if calibration is None else calibration[index])
        converted.update({prefix + name: tensor for name, tensor in state.items()})
    return converted


def _check_layer(layer: DifferentialLayer, method: str) -> None:
    """Check that a layer can represent pretrained heads."""
    if layer.lambda_init.item() >= 1:
        raise ValueError(f"lambda_init={layer.lambda_init.item():g} must be below 1, or the two maps cancel")
    if not isinstance(layer, DifferentialAttention):
        return
    if layer.head_norm:
        raise ValueError("head_norm=True would change the output of pretrained heads: convert with head_norm=False")
    if method == "pairs" and layer.branch_dims[0] != layer.branch_dims[1]:
        raise ValueError(
            f"conversion 'pairs' gives each head of a pair one branch: branch_dims={layer.branch_dims} must be equal"
        )


def pairs_kwargs(num_heads: int, head_dim: int) -> dict:
    """Return the constructor arguments of the heads that 'pairs' makes.

    Args:
        num_heads: number of heads of the plain network.
        head_dim: width of each of them.

    Raises:
        ValueError: an odd number of heads.
    """
    if num_heads % 2:
        raise ValueError(f"conversion 'pairs' makes one head of two, and {num_heads} heads do not pair")
    return dict(num_heads=num_heads // 2, branch_dims=(head_dim, head_dim))
