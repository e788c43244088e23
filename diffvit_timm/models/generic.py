"""The architecture `diffvit` builds any transformer of timm with differential attention, from the plain one's name.

    import timm, diffvit_timm
    model = timm.create_model('diffvit', base='beit_base_patch16_224.in22k_ft_in22k', attn='diff_v2', pretrained=True)

The pretrained weights of the plain network are converted. A network that `from_vit` converted is saved with the
architecture name `diffvit`, so that timm can load it. DINOv2, DINOv3, SigLIP, EVA-02 and Perception Encoder have names
of their own, for both versions:

    model = timm.create_model('diffvit_small_patch16_dinov3.lvd1689m', pretrained=True)     # version 1
    model = timm.create_model('diffvit2_small_patch16_dinov3.lvd1689m', pretrained=True)    # version 2
"""

from typing import Any

import timm
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    filter_pretrained_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor, nn

from ..conversion.surgery import check_method, replace_layers
from ..conversion.weights import is_differential
from .diffvit import GENERIC, SOURCES, converted_cfg
from .from_vit import from_vit
from .layer_names import decode_layers
from .meta_device import build_on_meta

__all__ = ["BASES", "plain_name"]

# Backbones with names of their own, as patterns of timm's names.
PATTERNS = ("vit_*dinov2*", "vit_*_dinov3*", "vit_*siglip*", "eva02_*", "vit_pe_*")


def _tags() -> dict[str, list[str]]:
    """Return the pretrained tags of every backbone, from one call, because timm sorts all its names in each call."""
    tags: dict[str, list[str]] = {base: [] for base in timm.list_models(list(PATTERNS))}
    for name in timm.list_pretrained([f"{pattern}.*" for pattern in PATTERNS]):
        base, tag = name.split(".", 1)
        tags[base].append(tag)
    return tags


TAGS = {base: tags for base, tags in _tags().items() if tags}

# Each registered name, and its plain network in timm. The name is timm's, without `vit_`, after diffvit_ or diffvit2_.
BASES = {f"{version}_{base.removeprefix('vit_')}": base for version in ("diffvit", "diffvit2") for base in TAGS}


def _pretrained_cfgs(name: str) -> dict[str, PretrainedCfg]:
    """Return the pretrained configs of a name, one per tag of its plain network, the default tag first."""
    base = BASES[name]
    default = get_pretrained_cfg(base).tag
    tags = sorted(TAGS[base], key=lambda tag: tag != default)
    return {f"{name}.{tag}": converted_cfg(f"{base}.{tag}") for tag in tags}


default_cfgs = generate_default_cfgs({tag: cfg for name in BASES for tag, cfg in _pretrained_cfgs(name).items()})


@register_model
def diffvit(
    pretrained: bool = False,
    base: str | None = None,
    attn: str = "diff",
    conversion: str | None = None,
    lambda_init: float | None = None,
    branch_dims: tuple[int, int] | None = None,
    pretrained_cfg: Any = None,
    pretrained_model_args: dict | None = None,
    **kwargs,
) -> nn.Module:
    """Any transformer of timm that `from_vit` can convert.

    Args:
        pretrained: whether to load weights: those of a saved network, or those of `base`, which are then converted.
        base: timm's name of the plain network, with the tag of its weights.
        attn: 'diff' (version 1), 'diff_v2', or 'plain' for the plain network itself.
        conversion: method that converts the weights, as `method` of `from_vit`.
        lambda_init, branch_dims: as in `from_vit`.
        pretrained_cfg, pretrained_model_args: what timm read from the config of a saved network.
        **kwargs: arguments of timm.create_model for the plain network.

    Raises:
        ValueError: no base, a base that cannot be converted, or settings that do not fit it.
        RuntimeError: saved weights that do not fit the network.
    """
    if base is None:
        raise ValueError("base is missing: pass the timm name of the plain network, e.g. base='deit_tiny_patch16_224'")
    kwargs = decode_layers(kwargs)
    if attn == "plain":
        return timm.create_model(base, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
    branch_dims = None if branch_dims is None else (branch_dims[0], branch_dims[1])  # a config has a list
    settings: Any = {"attn": attn, "lambda_init": lambda_init, "branch_dims": branch_dims}
    if pretrained and not pretrained_cfg:
        check_method(build_on_meta(base, **kwargs), conversion)  # before the weights are downloaded
        plain = timm.create_model(base, pretrained=True, **kwargs)
        return from_vit(plain, conversion, **settings)

    def build(**arguments: Any) -> nn.Module:
        plain = timm.create_model(base, pretrained=False, **arguments)
        # The cheapest method gives all parameters their shapes; the weights are loaded afterwards.
        method = conversion or ("slice" if attn == "diff" else "mirror")
        return replace_layers(plain, method=method, **settings)

    cfg = pretrained_cfg or {
        **filter_pretrained_cfg(get_pretrained_cfg(base).to_dict(), remove_source=True), "architecture": GENERIC
    }  # fmt: skip
    feature_cfg = dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter")

    def load(img_size: Any) -> Any:
        return build_model_with_cfg(
            build,
            GENERIC,
            pretrained,
            pretrained_cfg=cfg,
            pretrained_model_args=pretrained_model_args,
            pretrained_filter_fn=_check_checkpoint,
            feature_cfg=dict(feature_cfg),
            **kwargs,
            **({} if img_size is None else {"img_size": img_size}),
        )

    # The position embeddings of a saved network have its size, so another size is set after the weights are loaded.
    img_size = kwargs.pop("img_size", None)
    saved_size = (pretrained_model_args or {}).get("img_size")
    model = load(saved_size or img_size)
    if saved_size is None or img_size == saved_size:
        return model
    if not hasattr(model, "set_input_size"):  # networks whose weights do not depend on the size
        return load(img_size)
    model.set_input_size(img_size)
    return model


def _register(name: str) -> None:
    """Register a backbone with a name of its own."""

    def entry_point(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs) -> nn.Module:
        base = BASES[name]
        if not isinstance(pretrained_cfg, dict):  # a tag, or none: the plain weights are converted
            base = f"{base}.{pretrained_cfg or get_pretrained_cfg(base).tag}"
            pretrained_cfg = None
        attn = "diff_v2" if name.startswith("diffvit2") else "diff"
        model = diffvit(pretrained, pretrained_cfg=pretrained_cfg, **{"base": base, "attn": attn, **kwargs})
        if model.pretrained_cfg.get("architecture") == GENERIC:  # not the plain twin, which is timm's own
            model.pretrained_cfg["architecture"] = name
        return model

    entry_point.__name__ = name
    register_model(entry_point)


for _name in BASES:
    _register(_name)


def plain_name(name: str) -> str:
    """Return the name of the plain network from which a model's weights are converted; other names do not change."""
    first = next((tag for tag in SOURCES if tag.split(".")[0] == name), name)  # a variant's default is its first tag
    architecture = name.split(".")[0]
    return SOURCES.get(first) or name.replace(architecture, BASES.get(architecture, architecture), 1)


def _check_checkpoint(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Check that a checkpoint has exactly the tensors of the model, except for the classifier.

    timm loads with strict=False if num_classes differs, so a layer that is missing in the checkpoint would stay random.

    Raises:
        RuntimeError: missing or unexpected tensors.
    """
    if not is_differential(state_dict):
        raise RuntimeError("these are the weights of a plain network: convert it with diffvit_timm.from_vit")
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    own = model.state_dict().keys()
    if wrong := sorted(key for key in own ^ state_dict.keys() if not key.startswith(heads)):
        raise RuntimeError(f"the checkpoint does not fit the model: {', '.join(wrong[:5])} only in one of them")
    return state_dict
