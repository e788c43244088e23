"""The outputs of a classifier: the names of its classes, and its probabilities."""

from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from ..console import printable
from .saved_config import MULTI_LABEL, read_label_names

__all__ = ["class_names", "is_multi_label_model", "probabilities", "set_multi_label"]


def class_names(model: Any) -> list[str] | None:
    """Return the class names of a timm model: those saved with it, or ImageNet's if the number of classes matches.

    Args:
        model: a model from `load_model` or timm.create_model.

    Returns:
        One name per output, with control characters as escapes, or None if the names are not known.
    """
    names = model.pretrained_cfg.get("label_names")
    subset = infer_imagenet_subset(model)
    if names and len(names) == model.num_classes:
        names = read_label_names(names if isinstance(names, dict) else list(names), model.num_classes)
        return None if names is None else [printable(name) for name in names]
    return ImageNetInfo(subset).label_descriptions(detailed=False) if subset else None


def set_multi_label(model: Any, is_multi_label: bool = True) -> None:
    """Note whether an image may have any number of a model's classes; `save_pretrained` saves it."""
    model.pretrained_cfg.pop("problem_type", None)
    if is_multi_label:
        model.pretrained_cfg["problem_type"] = MULTI_LABEL


def is_multi_label_model(model: Any) -> bool:
    """Return whether a model was trained for images with any number of classes."""
    return (getattr(model, "pretrained_cfg", None) or {}).get("problem_type") == MULTI_LABEL


def probabilities(model: Any, logits: Tensor) -> Tensor:
    """Return the probability of each class, in float32.

    Args:
        model: the model that computed the logits. If an image may have any number of its classes, the probability of
            each class is a sigmoid, and they do not add up to 1.
        logits: (..., classes).
    """
    logits = logits.float()
    return logits.sigmoid() if is_multi_label_model(model) else logits.softmax(dim=-1)
