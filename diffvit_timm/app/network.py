"""The networks of the explorer: each is loaded once, with its transform, its class names and its titles."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import create_transform

from ..data.images import MODES
from ..data.loading import model_data_config
from ..errors import InputError
from ..inspection.attention_maps import CapturedAttention, capture_attention, check_heat_maps
from ..inspection.naming import model_title
from ..models.outputs import class_names
from ..models.pretrained import check_model, load_model, short_names, size_arguments

__all__ = ["ExploredNetwork", "load_networks"]


@dataclasses.dataclass(frozen=True)
class ExploredNetwork:
    """A network in evaluation mode, and how it reads images.

    Attributes:
        name: short name for labels.
        title: its name and its attention, for titles.
        model: the network.
        transform: evaluation transform of its images.
        mode: PIL's mode of its images.
        classes: one name per output; empty for a network without a head.
        device: device that it computes on.
        output: the token that the classifier reads, in words.
        heads: number of heads of each attention layer.
    """

    name: str
    title: str
    model: Any
    transform: Any
    mode: str
    classes: list[str]
    device: str
    output: str
    heads: list[int]


def load_networks(
    names: Sequence[str], device: str = "cpu", img_size: Sequence[int] = (), parameter: str = "models"
) -> list[ExploredNetwork]:
    """Load the networks of the explorer. All are checked before the first one is loaded.

    Args:
        names: models in the four forms of models/pretrained.py.
        device: device to compute on.
        img_size: image size in pixels: one number, or height and width; empty for the size of each network.
        parameter: what the caller calls `names`.

    Raises:
        InputError: as `check_model` and `load_model`; the same model twice; or a network without attention from patch
            to patch of the whole image.
    """
    titles = short_names(list(names), parameter)
    for name in names:
        check_model(name, parameter=parameter)
    return [_load(name, title, device, img_size, parameter) for name, title in zip(names, titles, strict=True)]


def _load(name: str, short_name: str, device: str, img_size: Sequence[int], parameter: str) -> ExploredNetwork:
    model = load_model(name, parameter=parameter, **size_arguments(img_size)).eval()
    try:
        check_heat_maps(model)
    except TypeError as error:
        raise InputError(f"`{parameter}={name}`: {error}") from error
    config = model_data_config(model)
    model = model.to(device)
    return ExploredNetwork(
        name=short_name,
        title=model_title(short_name, model),
        model=model,
        transform=create_transform(**config, is_training=False),
        mode=MODES[config["input_size"][0]],
        classes=(class_names(model) or [f"class {i}" for i in range(model.num_classes)]) if model.num_classes else [],
        device=device,
        output="the class token" if CapturedAttention(model).reads_class_token else "all patches, on average",
        heads=_heads(model, torch.zeros(1, *config["input_size"], device=device)),
    )


@torch.no_grad()
def _heads(model: Any, images: torch.Tensor) -> list[int]:
    """Return the number of heads of each attention layer, from a forward pass, (1, C, H, W)."""
    with capture_attention(model) as captured:
        model(images)
    return [layer.maps().map1.shape[1] for layer in captured]
