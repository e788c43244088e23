"""Plain ViT weights become Diff-ViT weights that keep what the network knows.

A head of width d has logits `q . k / sqrt(d)`. Rotating q and k jointly leaves them unchanged, so the rotation is free
to put as much of the logits as possible into the first d1 channels: branch 1 then is close to the pretrained map, and
branch 2, the d2 channels that are left, starts as a weak correction under a small lambda. Version 2 has room for two
whole maps, and holds the pretrained network exactly.
"""

from collections.abc import Mapping, Sequence

import torch
from timm.models import VisionTransformer
from torch import Tensor

from ..layers.attention import DifferentialAttention, DifferentialLayer

__all__ = [
    "METHODS",
    "READS_IMAGES",
    "convert_state_dict",
    "is_differential",
    "logit_rotation",
    "pairs_kwargs",
    "resolve_method",
]


# Of each attention; the first is the default where there are no images.
METHODS = {"diff": ("svd", "slice", "pairs", "calibrated"), "diff_v2": ("mirror",)}

READS_IMAGES = ("calibrated", "pairs")


def resolve_method(method: str | None, attn: str, with_images: bool = False) -> str:
    """The method by name; None and 'auto' are the default of an attention.

    Raises:
        ValueError: a method unknown or of another attention, or one that goes without images or cannot.
    """
    if attn not in METHODS:
        raise ValueError(f"attn={attn!r}: conversion is to {' or '.join(map(repr, METHODS))}")
    if method in (None, "auto"):
        method = "calibrated" if with_images and attn == "diff" else METHODS[attn][0]
    if method not in METHODS[attn]:
        choices = "; ".join(f"attn={a!r} has {', '.join(map(repr, m))}" for a, m in METHODS.items())
        raise ValueError(f"conversion {method!r} is not one of attn={attn!r}: {choices}")
    if method == "calibrated" and not with_images:
        raise ValueError("conversion 'calibrated' needs images: from_vit(..., images=...)")
    if with_images and method not in READS_IMAGES:
        raise ValueError(f"conversion {method!r} reads no images: leave them out, or choose 'calibrated'")
    return method


def _matrix_root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and pseudo-inverse square root of symmetric positive semi-definite matrices, (..., d, d)."""
    values, vectors = torch.linalg.eigh(gram)
    floor = values.amax(-1, keepdim=True) * gram.shape[-1] * torch.finfo(gram.dtype).eps
    root = values.clamp(min=0).sqrt()
    inverse = torch.where(values > floor, root.reciprocal(), 0.0)
    return (vectors * root.unsqueeze(-2)) @ vectors.mT, (vectors * inverse.unsqueeze(-2)) @ vectors.mT


def logit_rotation(gram_q: Tensor, gram_k: Tensor) -> tuple[Tensor, Tensor]:
    """The joint rotation of q and k that orders their channels by what they carry of the logits.

    With G_q^1/2 G_k^1/2 = U S V^T (Eckart and Young, 1936), channel i of the rotated pair carries S_i^2 of the logits'
    energy E[(q . k)^2], the most that any i + 1 channels can.

    Args:
        gram_q: E[q q^T], (H, d, d).
        gram_k: the same of the keys less a mean of theirs (a constant along the keys changes no softmax), (H, d, d).

    Returns:
        (R_q, R_k), (H, d, d) each, with (R_q q) . (R_k k) = q . k wherever q and k lie in the range of the Grams.
    """
    root_q, inverse_q = _matrix_root(gram_q)
    root_k, inverse_k = _matrix_root(gram_k)
    u, s, vh = torch.linalg.svd(root_q @ root_k)
    half = s.sqrt().unsqueeze(-1)
    return half * (u.mT @ inverse_q), half * (vh @ inverse_k)


def is_differential(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is a Diff-ViT's (ours or timm's)."""
    return any(key.endswith((".lambda_q1", ".lambda_a", ".lambda_proj.weight")) for key in state_dict)


def _rotate(q: Tensor, k: Tensor, moments: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Heads (H, d, dim + 1), the bias last, rotated so that their first channels carry the most."""
    if moments is None:
        # Tokens taken as white, bar the constant that carries the bias of q; that of k changes no softmax.
        moments = q @ q.mT, k[..., :-1] @ k[..., :-1].mT
    rotate_q, rotate_k = logit_rotation(*moments)
    k = rotate_k @ k
    k[..., -1] = 0
    return rotate_q @ q, k


def _convert_layer(
    plain: dict[str, Tensor],
    layer: DifferentialLayer,
    method: str,
    calibration: tuple[Tensor, Tensor] | list[int] | None,
) -> dict[str, Tensor]:
    """The state dict of `layer` from that of timm's Attention, names without their prefix."""
    plain = {name: tensor.cpu() for name, tensor in plain.items()}  # not every device has float64
    weight = plain["qkv.weight"]
    bias = plain.get("qkv.bias", weight.new_zeros(weight.shape[0]))
    dim = weight.shape[1]
    num_heads = layer.num_heads * (2 if method == "pairs" else 1)
    q, k, v = torch.cat([weight, bias.unsqueeze(-1)], dim=-1).double().reshape(3, num_heads, dim // num_heads, dim + 1)
    proj = plain["proj.weight"].double()

    if method in ("svd", "calibrated"):
        assert not isinstance(calibration, list)
        q, k = _rotate(q, k, calibration)
    elif method == "pairs" and calibration is not None:
        q, k, v = q[calibration], k[calibration], v[calibration]
        proj = proj.reshape(dim, num_heads, -1)[:, calibration].flatten(1)
    elif method == "mirror":
        q = torch.stack([q, q], dim=1)
    q = q * ((dim // num_heads) ** -0.5 / layer.scale)

    state: dict[str, Tensor] = {name: tensor.cpu().clone() for name, tensor in layer.state_dict().items()}
    made_here = {"qkv.bias", "proj.bias", *(name for name in state if name.startswith(("lambda_", "branch_")))}
    wrong = (plain.keys() - state.keys()) | (state.keys() - plain.keys() - made_here)
    if wrong:
        raise ValueError(f"{', '.join(sorted(wrong))}: only in one of source and model; give both the same settings")
    dtype = layer.qkv.weight.dtype  # not the checkpoint's: rounding a rotation to half precision again would lose more
    rows = torch.cat([heads.reshape(-1, dim + 1) for heads in (q, k, v)]).to(dtype)
    state["qkv.weight"] = rows[:, :-1].contiguous()
    if "qkv.bias" in state:
        state["qkv.bias"] = rows[:, -1].contiguous()
    # Rows of A1 - lambda A2 sum to 1 - lambda: give the values their mass back.
    state["proj.weight"] = (proj / (1 - layer.lambda_init.item())).to(dtype)
    if "proj.bias" in state:
        state["proj.bias"] = plain.get("proj.bias", torch.zeros_like(state["proj.bias"]))
    if isinstance(layer, DifferentialAttention):
        # Equal, not zero, vectors: lambda is exactly lambda_init, and its gradient is alive.
        state["lambda_q2"], state["lambda_k2"] = state["lambda_q1"].clone(), state["lambda_k1"].clone()
    else:
        state["lambda_proj.weight"].zero_()  # lambda is lambda_init for every token
    return state


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    model: VisionTransformer,
    method: str | None = None,
    calibration: Sequence[tuple[Tensor, Tensor]] | Sequence[list[int]] | None = None,
) -> dict[str, Tensor]:
    """The weights of a plain ViT as those of `model`, a Diff-ViT of the same shape.

    Args:
        state_dict: of a plain timm VisionTransformer; not changed.
        model: a DiffVisionTransformer; its attention layers say head count, branch widths and lambda_init.
        method: for attn='diff' 'svd' rotates each head so that branch 1 carries the most (see `logit_rotation`), from
            the weights alone; 'calibrated' does so for the tokens of real images (`from_vit` then fits the output
            projections too, see `fit_projections`); 'slice' cuts the head's channels in order, the naive baseline;
            'pairs' makes one head of two, a branch each, as the paper does in its nets of equal size, so `model` has
            half the source's heads. For attn='diff_v2' 'mirror' gives both branches the pretrained map: exactly the
            source's function. None: the default of `resolve_method`.
        calibration: of `logit_moments` for 'calibrated'; of `head_pairs` for 'pairs', which without pairs neighbours.

    Raises:
        ValueError: a method unknown or of another attention, 'calibrated' without moments, or a layer that cannot
            hold a pretrained head.
        RuntimeError: a checkpoint without the weights of a plain attention layer.
    """
    method = resolve_method(method, model.attn, calibration is not None)
    converted = dict(state_dict)
    for index, block in enumerate(model.blocks):
        layer = block.attn
        _check_layer(layer, method)
        prefix = f"blocks.{index}.attn."
        plain = {key.removeprefix(prefix): converted.pop(key) for key in state_dict if key.startswith(prefix)}
        if any(key.startswith(("q_norm.", "k_norm.")) for key in plain):
            raise ValueError("the source normalises its queries and keys (qk_norm): its logits cannot be split in two")
        known = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
        lost = {"qkv.weight", "proj.weight"} - plain.keys() | plain.keys() - known
        if lost:
            raise RuntimeError(f"{prefix}*: {', '.join(sorted(lost))} missing or unknown to a plain attention layer")
        one = None if calibration is None else calibration[index]
        converted.update({prefix + name: tensor for name, tensor in _convert_layer(plain, layer, method, one).items()})
    return converted


def _check_layer(layer: DifferentialLayer, method: str) -> None:
    """Refuse a layer that cannot hold pretrained heads."""
    if layer.lambda_init.item() >= 1:
        raise ValueError(f"lambda_init={layer.lambda_init.item():g} leaves nothing of the first map: start below 1")
    if not isinstance(layer, DifferentialAttention):
        return
    if layer.head_norm:
        raise ValueError("head_norm=True normalises away what pretrained heads know: convert with head_norm=False")
    if method == "pairs" and layer.branch_dims[0] != layer.branch_dims[1]:
        raise ValueError(
            f"conversion 'pairs' gives a branch to each head of a pair: branch_dims={layer.branch_dims} differ"
        )


def pairs_kwargs(num_heads: int, head_dim: int) -> dict:
    """The heads of a model that 'pairs' makes of `num_heads` plain ones of width `head_dim`.

    Raises:
        ValueError: an odd number of heads.
    """
    if num_heads % 2:
        raise ValueError(f"conversion 'pairs' makes one head of two: {num_heads} heads do not pair")
    return dict(num_heads=num_heads // 2, branch_dims=(head_dim, head_dim))
