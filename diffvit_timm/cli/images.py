"""Images of the user: files as a model reads them, and the test images of a dataset."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.data import create_transform

from ..data.config import DatasetConfig
from ..data.decoding import decode_image
from ..data.images import MODES
from ..data.loading import model_data_config
from ..errors import InputError, require_device
from ..models.pretrained import check_model, load_model

if TYPE_CHECKING:
    from ..data.splits import EvaluationSplit

__all__ = ["draw_test_images", "load_for_inference", "read_image"]


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


def draw_test_images(data: DatasetConfig, images: int) -> "EvaluationSplit":
    """Load the test images of a dataset, for a command with the option `images`.

    Args:
        data: options of the dataset.
        images: number of images to draw at random, always the same ones; 0: all of them.

    Raises:
        InputError: as `DatasetConfig.load_test`, or fewer images than are to be drawn.
    """
    test = data.load_test()
    count = len(test.images)
    if images > count:
        raise InputError(
            f"`images={images}` is more than the {count} test images of `dataset={data.dataset}`: lower it"
        )
    return dataclasses.replace(test, images=test.images.shuffle(seed=0).take(images)) if images else test


def read_image(path: Path, mode: str) -> Any:
    """Decode an image file in a PIL mode; errors as in `decode_image`."""
    return decode_image({"bytes": None, "path": str(path)}, mode, str(path))
