"""The attention of a network in words, for the titles of figures."""

from torch import nn

from ..layers.adapters import known_layers
from ..layers.adapters.timm_differential import TIMM_DIFFERENTIAL
from ..layers.base import attention_kind

__all__ = ["attention_label", "model_title"]

LABELS = {
    "diff": "differential attention", "diff_v2": "differential attention, version 2", "plain": "plain attention",
    "gated": "gated attention", "dna": "negative attention (DnA)",
}  # fmt: skip


def attention_label(model: nn.Module) -> str:
    """Return the attention of a network in words; '' for a network without self-attention that the package knows."""
    try:
        layers = known_layers(model)
    except ValueError:
        return ""
    if any(isinstance(layer, TIMM_DIFFERENTIAL) for layer in layers.values()):
        return "timm's differential attention"
    return LABELS[attention_kind(model)]


def model_title(name: str, model: nn.Module) -> str:
    """Return the name of a model and its attention, for the title of a figure: 'NAME, differential attention'."""
    return f"{name}, {label}" if (label := attention_label(model)) else name
