"""timm's VisionTransformer with differential attention."""

from collections.abc import Callable
from functools import partial

import torch
from timm.layers import LayerNorm, get_norm_layer
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import nn

from ..layers.attention import DifferentialAttention
from ..layers.attention_v2 import DifferentialAttentionV2
from ..layers.base import DifferentialLayer
from ..layers.pos_embed import POS_EMBEDS, POS_EMBEDS_2D, PosEmbed2d

__all__ = ["ATTENTIONS", "LEARNED_AXES", "DiffVisionTransformer"]

ATTENTIONS = ("diff", "diff_v2", "plain")


# The rows and columns of pos_embed='learn_2d' in a state dict.
LEARNED_AXES = ("patch_embed.norm.1.rows", "patch_embed.norm.1.columns")


class DiffBlock(Block):
    """timm's pre-norm transformer block with differential attention.

    Args:
        dim, num_heads, ...: as in timm.models.vision_transformer.Block.
        make_attn: called with timm's arguments of an attention layer, and the depth of the block.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        make_attn: Callable[..., nn.Module],
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        norm_layer: type[nn.Module] = LayerNorm,
        depth: int = 0,
        device=None,
        dtype=None,
        **kwargs,
    ) -> None:
        common: dict = dict(proj_bias=proj_bias, proj_drop=proj_drop, norm_layer=norm_layer, device=device, dtype=dtype)
        super().__init__(dim, num_heads, **common, **kwargs)
        self.attn = make_attn(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            scale_norm=scale_attn_norm,
            attn_drop=attn_drop,
            depth=depth,
            **common,
        )


def _version_2(dim: int, num_heads: int, *, qk_norm: bool, scale_norm: bool, norm_layer, depth: int, **kwargs):
    """DifferentialAttentionV2 from timm's arguments; it has no norms, and is the same at any depth."""
    if qk_norm or scale_norm:
        raise ValueError("attn='diff_v2' has no norms: leave out qk_norm and scale_attn_norm")
    return DifferentialAttentionV2(dim, num_heads, **kwargs)


def _block_fn(attn: str, head_norm: bool | None, lambda_init: float | str | None, branch_dims):
    """The block of an attention, with the settings that were given; the rest are the layer's defaults."""
    settings = dict(head_norm=head_norm, lambda_init=lambda_init, branch_dims=branch_dims)
    given = {name: value for name, value in settings.items() if value is not None}
    if attn == "plain":
        return Block
    if attn == "diff":
        return partial(DiffBlock, make_attn=partial(DifferentialAttention, **given))
    for name in ("head_norm", "branch_dims"):
        if given.pop(name, None):
            raise ValueError(f"{name}={settings[name]!r} is a setting of attn='diff'; attn='diff_v2' has none such")
    return partial(DiffBlock, make_attn=partial(_version_2, **given))


class DiffVisionTransformer(VisionTransformer):
    """timm's VisionTransformer whose attention is one keyword: 'diff', 'diff_v2' or 'plain', its twin without."""

    def __init__(
        self,
        *,
        attn: str = "diff",
        head_norm: bool | None = None,
        lambda_init: float | str | None = None,
        branch_dims: tuple[int, int] | None = None,
        pos_embed: str = "learn",
        norm_eps: float | None = None,
        norm_layer=None,
        **kwargs,
    ) -> None:
        """
        Args:
            attn: 'diff' (the paper's), 'diff_v2' (its authors' second version: twice the queries, lambda a token and
                head) or 'plain' (timm's own Attention; ignores the three settings that follow).
            head_norm: RMSNorm each head's output and multiply by `1 - lambda_init` (the paper, and the default; off in
                converted nets). Only of 'diff'.
            lambda_init: a number, or 'schedule' for the paper's schedule over the blocks, the default of 'diff'; that
                of 'diff_v2' is 0.5.
            branch_dims: widths (d1, d2) of the two branches of a head; None halves it. Only of 'diff'. (The variants
                made for conversion have three quarters and a quarter unless told; None is not told, as in timm.)
            pos_embed: 'learn' (timm's: a learned vector a patch), 'learn_2d' (one a row and one a column), 'sincos' (of
                both, fixed) or 'none'. Those of two dimensions leave out the prefix tokens; `pos_drop_rate` is of
                'learn' alone, as in timm.
            norm_eps: eps of the norms; None is the norm layer's own. A number, so that a saved config can carry it.
            norm_layer, **kwargs: as in timm.models.VisionTransformer.

        Raises:
            ValueError: an unknown `attn` or `pos_embed`, or settings that its layer has not or refuses.
        """
        if attn not in ATTENTIONS:
            raise ValueError(f"attn={attn!r} is not known: choose one of {', '.join(map(repr, ATTENTIONS))}")
        if pos_embed not in POS_EMBEDS:
            raise ValueError(f"pos_embed={pos_embed!r} is not known: choose one of {', '.join(map(repr, POS_EMBEDS))}")
        for name in ("attn_layer", "block_fn"):
            if name in kwargs:
                choices = ", ".join(map(repr, ATTENTIONS))
                raise ValueError(f"{name} is timm's; the attention of a Diff-ViT is chosen by attn, one of {choices}")
        if norm_eps is not None:
            norm_layer = partial(get_norm_layer(norm_layer) or LayerNorm, eps=norm_eps)
        block_fn = _block_fn(attn, head_norm, lambda_init, branch_dims)
        table = "learn" if pos_embed == "learn" else "none"
        super().__init__(norm_layer=norm_layer, block_fn=block_fn, pos_embed=table, **kwargs)
        self.attn = attn
        if pos_embed in POS_EMBEDS_2D:
            where = {name: kwargs[name] for name in ("device", "dtype") if name in kwargs}
            flat = not self.dynamic_img_size
            embed = POS_EMBEDS_2D[pos_embed](self.patch_embed.grid_size, self.embed_dim, flat, **where)
            # the last step of patch_embed: TorchScript knows no super(), and so no _pos_embed beside timm's
            self.patch_embed.norm = nn.Sequential(self.patch_embed.norm, embed)
        self._no_split_modules = [type(self.blocks[0]).__name__]  # for accelerate: what stays on one device

    @torch.jit.ignore
    def set_input_size(self, img_size=None, patch_size=None) -> None:
        """timm's: another size of images or patches, the position embedding resampled."""
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        for module in self.patch_embed.modules():
            if isinstance(module, PosEmbed2d):
                module.set_grid(self.patch_embed.grid_size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """timm's names, and the two axes of a learned position embedding."""
        return super().no_weight_decay() | set(LEARNED_AXES)

    @torch.jit.ignore
    def differential_layers(self) -> list[DifferentialLayer]:
        """The attention layers, first block first; empty in a plain model."""
        return [block.attn for block in self.blocks] if self.attn != "plain" else []

    @torch.jit.ignore
    def fuse(self) -> "DiffVisionTransformer":
        """Fold what is constant in inference into the output projections, in place; returns itself."""
        for layer in self.differential_layers():
            if isinstance(layer, DifferentialAttention):
                layer.fuse()
        return self

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """Set the lambda_init of every layer, from now on part of the state dict (copy the model for EMA after)."""
        for layer in self.differential_layers():
            layer.set_lambda_init(value)
