"""timm's VisionTransformer with differential attention."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.layers import Attention, LayerNorm, get_norm_layer
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from ..conversion.surgery import refuse_plain_file
from ..layers.attention import DifferentialAttention
from ..layers.attention_v2 import DifferentialAttentionV2
from ..layers.base import FROM_SCRATCH_ONLY, DifferentialLayer, differential_layers
from ..layers.denoising import DenoisingAttention
from ..layers.pos_embed import POS_EMBEDS, POS_EMBEDS_2D, PosEmbed2d

__all__ = ["ATTENTIONS", "LEARNED_AXES", "DiffVisionTransformer"]

ATTENTIONS = ("diff", "diff_v2", "plain", *FROM_SCRATCH_ONLY)

# Names of the row and column embeddings of pos_embed='learn_2d' in a state dict.
LEARNED_AXES = ("patch_embed.norm.1.rows", "patch_embed.norm.1.columns")


class DiffBlock(Block):
    """timm's pre-norm transformer block with another attention layer.

    Args:
        dim, num_heads, ...: as in timm.models.vision_transformer.Block.
        make_attn: function that creates the attention layer from timm's arguments of an attention layer and the
            index of the block (`depth`).
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


def _make_without_norms(
    attn: str, dim: int, num_heads: int, *, qk_norm: bool, scale_norm: bool, norm_layer, depth: int, **kwargs
) -> nn.Module:
    """Create the layer of 'diff_v2' or 'dna' from timm's arguments. It has no norms and ignores the depth."""
    if qk_norm or scale_norm:
        raise ValueError(f"attn={attn!r} has no norms: leave out qk_norm and scale_attn_norm")
    layer = DenoisingAttention if attn == "dna" else DifferentialAttentionV2
    return layer(dim, num_heads, **kwargs)


def _make_gated(dim: int, num_heads: int, *, depth: int, **kwargs) -> nn.Module:
    """Create timm's Attention with its gate, which multiplies the output of the heads by sigmoid(W x)."""
    return Attention(dim, num_heads, gated=True, **kwargs)


def _block_fn(attn: str, head_norm: bool | None, lambda_init: float | str | None, branch_dims):
    """Return the block class of an attention. A setting that is None keeps the default of the layer."""
    settings = dict(head_norm=head_norm, lambda_init=lambda_init, branch_dims=branch_dims)
    given = {name: value for name, value in settings.items() if value is not None}
    if attn == "plain":
        return Block
    if attn == "diff":
        return partial(DiffBlock, make_attn=partial(DifferentialAttention, **given))
    if attn in FROM_SCRATCH_ONLY and given:
        name = next(iter(given))
        raise ValueError(f"{name}={given[name]!r} is a setting of differential attention: leave it out for {attn=}")
    for name in ("head_norm", "branch_dims"):
        if given.pop(name, None):
            raise ValueError(f"{name}={settings[name]!r} is a setting of attn='diff': leave it out for attn='diff_v2'")
    make = _make_gated if attn == "gated" else partial(_make_without_norms, attn)
    return partial(DiffBlock, make_attn=partial(make, **given))


class _ChannelsLastStem(ConvStem):
    """timm's ConvStem in the channels-last memory format, which takes 0.6 to 0.8 of the time of the other on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for convolution in self:
            x = convolution(x)
        return x


def _conv_stem(in_chans: int, stem: Sequence[int], embed_dim: int, patch_size: tuple[int, int], **dd) -> ConvStem:
    """Return the convolutions of a stem, from images (B, in_chans, H, W) to patches (B, embed_dim, H / p, W / p).

    Raises:
        ValueError: channels that are not whole numbers above 0, a patch size that is no power of two, or one that
            needs more convolutions of stride 2.
    """
    if not isinstance(stem, (list, tuple)) or not all(isinstance(width, int) and width > 0 for width in stem):
        raise ValueError(f"stem={stem!r} must be a list of channels, whole numbers above 0, such as [32, 64]")
    side = patch_size[0]
    halvings = side.bit_length() - 1
    if patch_size != (2**halvings, 2**halvings):
        raise ValueError(f"stem={stem!r} needs square patches whose side is a power of two, not {patch_size=}")
    widths = (*stem, embed_dim)
    if len(widths) < halvings:
        raise ValueError(
            f"stem={stem!r} has too few convolutions: patches of {side} pixels need {halvings - 1} channels or more"
        )
    strides = (1,) * (len(widths) - halvings) + (2,) * halvings
    return _ChannelsLastStem(in_chans, len(widths), widths, stride=strides, **dd)


class DiffVisionTransformer(VisionTransformer):
    """timm's VisionTransformer with differential attention, or with another attention to compare it with."""

    def __init__(
        self,
        *,
        attn: str = "diff",
        head_norm: bool | None = None,
        lambda_init: float | str | None = None,
        branch_dims: tuple[int, int] | None = None,
        pos_embed: str = "learn",
        stem: Sequence[int] | None = None,
        norm_eps: float | None = None,
        norm_layer=None,
        **kwargs,
    ) -> None:
        """
        Args:
            attn: 'diff' (version 1, the paper's), 'diff_v2' (version 2 of its authors, with twice the queries and one
                lambda per token and head) or 'plain' (timm's own Attention, which ignores the next three arguments).
                Two more are only for training from scratch and refuse these arguments: 'gated' (timm's Attention with
                a sigmoid gate on the output of the heads) and 'dna' (DenoisingAttention, a negative query with values
                of its own).
            head_norm: whether to apply an RMSNorm to each head's output and to multiply it by `1 - lambda_init`. True
                is the paper's and the default of this class; False is that of all registered variants. Only for 'diff'.
            lambda_init: a number, or 'schedule' for the paper's schedule over the blocks. The default is 'schedule'
                for 'diff' and 0.5 for 'diff_v2'.
            branch_dims: widths (d1, d2) of the two branches of a head, by default halves. Only for 'diff'. (The
                registered variants for conversion have another default, three quarters and one quarter, which None
                chooses too, because timm drops arguments that are None.)
            pos_embed: 'learn' (timm's: one learned vector per patch), 'learn_2d' (one learned vector per row and one
                per column), 'sincos' (fixed sines and cosines of row and column) or 'none'. The two-dimensional ones
                are not added to the prefix tokens. As in timm, `pos_drop_rate` has an effect only with 'learn'.
            stem: channels of 3 x 3 convolutions with BatchNorm and ReLU that read the image; one more convolution makes
                the patches. The last ones have stride 2, until there is one vector per patch, and the others stride 1
                (`Xiao et al. 2021` - https://arxiv.org/abs/2106.14881). The default, None, is one convolution as large
                as a patch, which all pretrained weights have.
            norm_eps: eps of the norms, by default that of the norm layer. It is a number so that a saved config can
                contain it.
            norm_layer, **kwargs: as in timm.models.VisionTransformer.

        Raises:
            ValueError: an unknown `attn` or `pos_embed`, an invalid `norm_eps`, a `stem` that does not fit the patch
                size, or arguments that the attention layer does not accept.
        """
        if attn not in ATTENTIONS:
            raise ValueError(f"attn={attn!r} is not known: choose one of {', '.join(map(repr, ATTENTIONS))}")
        if pos_embed not in POS_EMBEDS:
            raise ValueError(f"pos_embed={pos_embed!r} is not known: choose one of {', '.join(map(repr, POS_EMBEDS))}")
        for name in ("attn_layer", "block_fn"):
            if name in kwargs:
                choices = ", ".join(map(repr, ATTENTIONS))
                raise ValueError(f"{name} is timm's: choose the attention of a Diff-ViT by attn, one of {choices}")
        if norm_eps is not None:
            if not isinstance(norm_eps, (int, float)) or not 0 < norm_eps < 1:
                raise ValueError(f"norm_eps={norm_eps!r} must be a number between 0 and 1")
            norm_layer = partial(get_norm_layer(norm_layer) or LayerNorm, eps=norm_eps)
        block_fn = _block_fn(attn, head_norm, lambda_init, branch_dims)
        timm_pos_embed = "learn" if pos_embed == "learn" else "none"
        super().__init__(norm_layer=norm_layer, block_fn=block_fn, pos_embed=timm_pos_embed, **kwargs)
        self.attn = attn
        dd = {name: kwargs[name] for name in ("device", "dtype") if name in kwargs}
        self.has_stem = stem is not None
        if stem is not None:
            in_chans = self.patch_embed.proj.in_channels
            self.patch_embed.proj = _conv_stem(in_chans, stem, self.embed_dim, self.patch_embed.patch_size, **dd)
            # timm adapts the weights of this convolution to the channels of the images.
            self._traits = {"first_conv": "patch_embed.proj.0.conv"}
        if pos_embed in POS_EMBEDS_2D:
            flat = not self.dynamic_img_size
            embed = POS_EMBEDS_2D[pos_embed](self.patch_embed.grid_size, self.embed_dim, flat, **dd)
            # It is the last step of patch_embed. An override of timm's _pos_embed would have to call super(), which
            # TorchScript does not support.
            self.patch_embed.norm = nn.Sequential(self.patch_embed.norm, embed)
        self._no_split_modules = [type(self.blocks[0]).__name__]  # modules that accelerate keeps on one device

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load the weights of an .npz file, as timm does, into a plain twin.

        Raises:
            ValueError: a differential network, which the file would fill without converting its weights.
        """
        if self.attn != "plain":
            refuse_plain_file(checkpoint_path)
        super().load_pretrained(checkpoint_path, prefix)

    @torch.jit.ignore
    def set_input_size(self, img_size=None, patch_size=None) -> None:
        """Change the size of the images or patches as timm does, and resample the position embedding.

        Raises:
            ValueError: another size of the patches of a network with a stem.
        """
        if self.has_stem and patch_size not in (None, self.patch_embed.patch_size, self.patch_embed.patch_size[0]):
            raise ValueError(f"patch_size={patch_size!r}: the convolutions of a stem have a fixed size of the patches")
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        for module in self.patch_embed.modules():
            if isinstance(module, PosEmbed2d):
                module.set_grid(self.patch_embed.grid_size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters without weight decay: timm's, and the axes of pos_embed='learn_2d'."""
        return super().no_weight_decay() | set(LEARNED_AXES)

    @torch.jit.ignore
    def differential_layers(self) -> list[DifferentialLayer]:
        """Return the differential attention layers, first block first. Other kinds of attention have none."""
        return differential_layers(self)

    @torch.jit.ignore
    def fuse(self) -> "DiffVisionTransformer":
        """Fold the head norms of version 1 into the output projections, in place, for inference.

        Returns:
            The model itself.
        """
        for layer in self.differential_layers():
            if isinstance(layer, DifferentialAttention):
                layer.fuse()
        return self

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """Set lambda_init of all layers. From then on it is in the state dict, so copy the model for EMA afterwards."""
        for layer in self.differential_layers():
            layer.set_lambda_init(value)
