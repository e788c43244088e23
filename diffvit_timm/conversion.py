"""Plain ViT weights become Diff-ViT weights that keep what the network knows.

A head of width d has logits `q . k / sqrt(d)`. Rotating q and k jointly leaves them unchanged, so the rotation is free
to put as much of the logits as possible into the first d1 channels: branch 1 then is close to the pretrained map, and
branch 2, the d2 channels that are left, starts as a weak correction under a small lambda.

    model = diffvit_timm.from_vit('deit_tiny_patch16_224.fb_in1k')
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import timm
import torch
from timm.layers import (
    Attention,
    GELUTanh,
    GluMlp,
    LayerNorm,
    Mlp,
    PatchEmbed,
    QuickGELU,
    RmsNorm,
    get_device_dtype,
)
from timm.models import VisionTransformer, filter_pretrained_cfg, is_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .attention import DifferentialAttention
from .calibration import logit_moments

__all__ = ["METHODS", "convert_state_dict", "from_vit", "is_differential", "logit_rotation"]

DATA_FREE_METHODS = ("svd", "slice")
METHODS = (*DATA_FREE_METHODS, "calibrated")


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
        gram_k: E[k k^T] of the keys less their mean (a constant along the keys changes no softmax), (H, d, d).

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
    return any(key.endswith((".lambda_q1", ".lambda_a")) for key in state_dict)


def _convert_layer(
    plain: dict[str, Tensor], layer: DifferentialAttention, method: str, moments: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    """The state dict of `layer` from that of timm's Attention, names without their prefix."""
    weight = plain["qkv.weight"]
    bias = plain.get("qkv.bias", weight.new_zeros(weight.shape[0]))
    heads = (3, layer.num_heads, layer.head_dim)
    q_weight, k_weight, v_weight = weight.double().reshape(*heads, -1)
    q_bias, k_bias, v_bias = bias.double().reshape(*heads, 1)

    if method != "slice":
        if moments is None:
            # Tokens taken as white, bar the constant that carries the bias of q; that of k changes no softmax.
            q_rows = torch.cat([q_weight, q_bias], dim=-1)
            moments = q_rows @ q_rows.mT, k_weight @ k_weight.mT
        rotate_q, rotate_k = logit_rotation(*moments)
        q_weight, q_bias = rotate_q @ q_weight, rotate_q @ q_bias
        k_weight, k_bias = rotate_k @ k_weight, torch.zeros_like(k_bias)

    # The pretrained softmax scale is head_dim ** -0.5, the layer's (head_dim / 2) ** -0.5.
    q_weight, q_bias = q_weight * 2**-0.5, q_bias * 2**-0.5
    # Rows of A1 - lambda A2 sum to 1 - lambda: give the values their mass back.
    lam = layer.lambda_init.item()
    state: dict[str, Tensor] = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    made_here = {"qkv.bias", "proj.bias", *(name for name in state if name.startswith(("lambda_", "branch_")))}
    wrong = (plain.keys() - state.keys()) | (state.keys() - plain.keys() - made_here)
    if wrong:
        raise ValueError(f"{', '.join(sorted(wrong))}: only in one of source and model; give both the same settings")
    state["qkv.weight"] = torch.stack([q_weight, k_weight, v_weight]).reshape(weight.shape).to(weight.dtype)
    if "qkv.bias" in state:
        state["qkv.bias"] = torch.stack([q_bias, k_bias, v_bias]).reshape(bias.shape).to(weight.dtype)
    state["proj.weight"] = (plain["proj.weight"].double() / (1 - lam)).to(weight.dtype)
    if "proj.bias" in state:
        state["proj.bias"] = plain.get("proj.bias", torch.zeros_like(state["proj.bias"]))
    # Equal, not zero, vectors: lambda is exactly lambda_init, and its gradient is alive.
    state["lambda_q2"], state["lambda_k2"] = state["lambda_q1"].clone(), state["lambda_k1"].clone()
    return state


def convert_state_dict(
    state_dict: Mapping[str, Tensor],
    model: VisionTransformer,
    method: str = "svd",
    moments: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """The weights of a plain ViT as those of `model`, a Diff-ViT of the same shape.

    Args:
        state_dict: of a plain timm VisionTransformer; not changed.
        model: whose attention layers say head count, branch widths and lambda_init.
        method: 'svd' rotates each head so that branch 1 carries the most (see `logit_rotation`), from the weights
            alone; 'calibrated' does so for the tokens of real images; 'slice' cuts the head's channels in order, the
            naive baseline.
        moments: of `logit_moments`, for 'calibrated'.

    Raises:
        ValueError: an unknown method, 'calibrated' without moments or moments without it, or a layer that cannot hold
            a pretrained head.
        RuntimeError: a checkpoint without the weights of a plain attention layer.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known: choose one of {', '.join(map(repr, METHODS))}")
    if (method == "calibrated") != (moments is not None):
        raise ValueError(f"method={method!r}: 'calibrated' needs images to read the moments from, the others none")
    converted = dict(state_dict)
    for index, block in enumerate(model.blocks):
        layer = block.attn
        if layer.head_norm:
            raise ValueError("head_norm=True normalises away what pretrained heads know: convert with head_norm=False")
        if layer.lambda_init.item() >= 1:
            raise ValueError(f"lambda_init={layer.lambda_init.item():g} leaves nothing of the first map: start below 1")
        prefix = f"blocks.{index}.attn."
        plain = {key.removeprefix(prefix): converted.pop(key) for key in state_dict if key.startswith(prefix)}
        if any(key.startswith(("q_norm.", "k_norm.")) for key in plain):
            raise ValueError("the source normalises its queries and keys (qk_norm): its logits cannot be split in two")
        known = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
        lost = {"qkv.weight", "proj.weight"} - plain.keys() | plain.keys() - known
        if lost:
            raise RuntimeError(f"{prefix}*: {', '.join(sorted(lost))} missing or unknown to a plain attention layer")
        pair = None if moments is None else moments[index]
        converted.update({prefix + name: tensor for name, tensor in _convert_layer(plain, layer, method, pair).items()})
    return converted


def _check_source(source: nn.Module) -> None:
    """Refuse, in one sentence, a network that has no exact place in a Diff-ViT."""
    name = type(source).__name__
    reasons = {
        "Eva": "rotary or relative position embeddings act on its queries and keys",
        "Beit": "a relative position bias is added to its logits",
        "VisionTransformerRelPos": "a relative position bias is added to its logits",
        "SwinTransformer": "its attention is windowed and has a relative position bias",
    }
    if not isinstance(source, VisionTransformer) or hasattr(source, "head_dist"):
        reason = reasons.get(name, "only timm's VisionTransformer is covered")
        raise ValueError(f"{name} cannot be converted: {reason}")
    if type(source.patch_embed) is not PatchEmbed:
        raise ValueError(f"{name} cannot be converted: its patches come from a {type(source.patch_embed).__name__}")
    for index, block in enumerate(source.blocks):
        attn = block.attn
        if type(block) is not Block or type(attn) is not Attention:
            kind = f"{type(block).__name__} with {type(attn).__name__}"
            raise ValueError(f"{name} cannot be converted: block {index} is a {kind}, not timm's Block with Attention")
        if type(block.mlp) not in (Mlp, GluMlp) or type(block.norm1) not in (LayerNorm, RmsNorm):
            kind = f"{type(block.mlp).__name__} and {type(block.norm1).__name__}"
            raise ValueError(f"{name} cannot be converted: block {index} has {kind}, not an MLP and a norm known here")
        if not isinstance(attn.q_norm, nn.Identity) or not isinstance(attn.k_norm, nn.Identity):
            raise ValueError(f"{name} cannot be converted: qk_norm normalises its queries and keys")
        if getattr(attn, "gate", None) is not None or not isinstance(attn.norm, nn.Identity):
            raise ValueError(f"{name} cannot be converted: block {index} gates or normalises its attention output")


def _vit_args(source: VisionTransformer) -> dict:
    """Constructor arguments of `source`, read off its modules; all but a gated MLP can be saved."""
    block = source.blocks[0]
    norm, act = type(block.norm1).__name__.lower(), type(block.mlp.act)
    names = {nn.GELU: "gelu", QuickGELU: "quick_gelu", GELUTanh: "gelu_tanh", nn.SiLU: "silu", nn.ReLU: "relu"}
    drop_path = source.blocks[-1].drop_path1
    args: dict = dict(
        img_size=source.patch_embed.img_size,
        patch_size=source.patch_embed.patch_size,
        in_chans=source.in_chans,
        num_classes=source.num_classes,
        global_pool=source.global_pool,
        embed_dim=source.embed_dim,
        depth=len(source.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / source.embed_dim,
        qkv_bias=block.attn.qkv.bias is not None,
        proj_bias=block.attn.proj.bias is not None,
        init_values=None if isinstance(block.ls1, nn.Identity) else block.ls1.gamma.abs().mean().item(),
        class_token=source.has_class_token,
        pos_embed="none" if source.pos_embed is None else "learn",
        no_embed_class=source.no_embed_class,
        reg_tokens=source.num_reg_tokens,
        pre_norm=not isinstance(source.norm_pre, nn.Identity),
        final_norm=not all(isinstance(norm, nn.Identity) for norm in (source.norm, source.fc_norm)),
        fc_norm=not isinstance(source.fc_norm, nn.Identity),
        pool_include_prefix=source.pool_include_prefix,
        dynamic_img_size=source.dynamic_img_size,
        dynamic_img_pad=source.patch_embed.dynamic_img_pad,
        drop_rate=source.head_drop.p,
        pos_drop_rate=source.pos_drop.p,
        patch_drop_rate=getattr(source.patch_drop, "prob", 0.0),
        proj_drop_rate=block.attn.proj_drop.p,
        attn_drop_rate=block.attn.attn_drop.p,
        drop_path_rate=getattr(drop_path, "drop_prob", 0.0),
        norm_layer=norm,
        norm_eps=block.norm1.eps,
        act_layer=names.get(act, act),
    )
    if isinstance(block.mlp, GluMlp):
        gated: Callable = GluMlp
        args["mlp_layer"] = functools.partial(gated, gate_last=block.mlp.gate_last)
    return args


def from_vit(
    source: str | VisionTransformer,
    method: str | None = None,
    images: Tensor | Iterable[Tensor] | None = None,
    **model_kwargs,
) -> VisionTransformer:
    """A Diff-ViT of the shape of a plain ViT, with its weights converted.

    Args:
        source: a timm VisionTransformer, not changed, or the name of one to load (`local-dir:` and `hf-hub:` too).
        method: as in `convert_state_dict`; None is 'calibrated' where there are images, 'svd' where there are none.
        images: unlabelled images to calibrate on, (n, C, H, W), normalised as the source wants them, or batches of
            such, read once; 256 do.
        **model_kwargs: settings of the Diff-ViT: lambda_init, branch_dims, drop_path_rate, ...

    Returns:
        A DiffVisionTransformer on the source's device, in its dtype and mode, ready for timm's own saving.

    Raises:
        ValueError: a source that cannot be converted, with the reason; images where the method reads none.
    """
    if isinstance(source, str):
        source = timm.create_model(source, pretrained=True)
    _check_source(source)
    args = _vit_args(source)
    cfg = getattr(source, "pretrained_cfg", None) or dict(
        input_size=(source.in_chans, *args["img_size"]), classifier="head", first_conv="patch_embed.proj"
    )
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
    variant = f"diffvit_{sizes.get(source.embed_dim)}_patch{args['patch_size'][0]}"
    variant = variant if is_model(variant) else "diffvit_base_patch16"
    model = timm.create_model(
        variant,
        pretrained_cfg={**filter_pretrained_cfg(cfg, remove_source=True), "architecture": variant},
        **{**args, **model_kwargs},
        **get_device_dtype(source),
    )
    method = method or ("svd" if images is None else "calibrated")
    moments = None if images is None else logit_moments(source, images)
    model.load_state_dict(convert_state_dict(source.state_dict(), model, method, moments))
    return model.train(source.training)
