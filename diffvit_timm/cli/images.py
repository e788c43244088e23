"""Images of the user as a model reads them."""

from pathlib import Path
from typing import Any

from timm.data import create_transform

from ..data.decoding import decode_image
from ..data.images import MODES
from ..data.loading import model_data_config
from ..errors import require_device
from ..models.pretrained import check_model, load_model

__all__ = ["load_for_inference", "read_image"]


def load_for_inference(name: str, device: str, pretrained: bool = True, hint: str = "") -> tuple[Any, Any, str]:
    """Load a network in evaluation mode; returns it, its transform, and the PIL mode of its images.

    Args:
        name: one of the four forms of a model (see models/pretrained.py).
        device: device to move the network to.
        pretrained: whether to load pretrained weights.
        hint: what the user can do instead if there are no weights.

    Raises:
        InputError: as `check_model` and `load_model`, or a device that cannot be used.
    """
    require_device(device)
    check_model(name, pretrained, hint=hint)
    network = load_model(name, pretrained).eval().to(device)
    settings = model_data_config(network)
    return network, create_transform(**settings, is_training=False), MODES[settings["input_size"][0]]


def read_image(path: Path, mode: str) -> Any:
    """Decode an image file in a PIL mode; errors as in `decode_image`."""
    return decode_image({"bytes": None, "path": str(path)}, mode, str(path))
