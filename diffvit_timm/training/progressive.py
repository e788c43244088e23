"""Progressive resizing: a training starts on small images, which are quicker, and ends on those of the model's size.

The size grows in stages of equal length (`EfficientNetV2` - https://arxiv.org/abs/2104.00298, section 4, which also
strengthens the regularisation from stage to stage; this does not).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ..errors import InputError

__all__ = ["ProgressiveSizes"]


class ProgressiveSizes:
    """The sizes of the training images, in stages of equally many updates.

    Args:
        model: network to train. It must take images of every size; it is called once with each.
        sizes: shorter sides of the images before the last stage, in pixels, in ascending order.
        input_size: (channels, height, width) of the last stage.
        updates: number of updates of the training.

    Raises:
        InputError: a size that is not below that of the model, or that the model does not take.
    """

    def __init__(self, model: Any, sizes: Sequence[int], input_size: Sequence[int], updates: int) -> None:
        self.sizes, self.updates = tuple(sizes), updates
        full = min(input_size[1:])
        for size in self.sizes:
            if size >= full:
                raise InputError(f"`progressive_sizes={size}` must be below the model's {full} pixels, which come last")
            _check_size(model, size, input_size)

    def resize(self, images: Tensor, step: int) -> Tensor:
        """Resize the images of an update.

        Args:
            images: (B, C, H, W), of the model's size.
            step: number of updates done before this one.

        Returns:
            (B, C, h, w), whose shorter side is that of the stage; in the last stage the images themselves.
        """
        stage = step * (len(self.sizes) + 1) // self.updates
        if stage >= len(self.sizes):
            return images
        return resize(images, [self.sizes[stage]], antialias=True)


def _check_size(model: Any, size: int, input_size: Sequence[int]) -> None:
    """Check by a forward pass that a model takes images of a size."""
    parameter = next(model.parameters())
    images = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(resize(images, [size]))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f"`progressive_sizes={size}`: the model does not take images of {size} pixels ({reason}): give multiples "
            "of its patch size, and to a ViT `model_kwargs=dynamic_img_size=true`"
        ) from error
    finally:
        model.train(was_training)
