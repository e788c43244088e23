"""The architecture `diffvit`: any transformer of timm with differential attention, by the name of its plain network.

    import timm, diffvit_timm
    model = timm.create_model('diffvit', base='vit_small_patch16_dinov3.lvd1689m', attn='diff_v2', pretrained=True)

The pretrained weights of the plain network are converted. A network that `from_vit` converted is saved under this
architecture, and loaded by it.
"""

from typing import Any

import timm
from timm.models import build_model_with_cfg, filter_pretrained_cfg, get_pretrained_cfg, register_model
from torch import Tensor, nn

from ..conversion.surgery import replace_layers
from ..conversion.weights import is_differential
from .from_vit import GENERIC, from_vit

__all__: list[str] = []


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
    if attn == "plain":
        return timm.create_model(base, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
    branch_dims = None if branch_dims is None else (branch_dims[0], branch_dims[1])  # a config has a list
    settings: Any = {"attn": attn, "lambda_init": lambda_init, "branch_dims": branch_dims}
    if pretrained and not pretrained_cfg:
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
    # The position embeddings of a saved network have its size, so another size is set after the weights are loaded.
    img_size = kwargs.get("img_size")
    saved_size = (pretrained_model_args or {}).get("img_size")
    if saved_size is not None:
        kwargs["img_size"] = saved_size
    model: Any = build_model_with_cfg(
        build,
        GENERIC,
        pretrained,
        pretrained_cfg=cfg,
        pretrained_model_args=pretrained_model_args,
        pretrained_filter_fn=_check_checkpoint,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **kwargs,
    )
    if saved_size is not None and img_size != saved_size:
        model.set_input_size(img_size)
    return model


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
