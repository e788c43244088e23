"""Progressive resizing: a training starts on small images, which are faster, and ends on those of the model's size.

The size grows in stages of equal length (`EfficientNetV2` - https://arxiv.org/abs/2104.00298, section 4, which also
strengthens the regularisation from stage to stage; this does not).
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ..console import counted
from ..data.loading import model_data_config
from ..errors import InputError
from ..layers.hooks import evaluating

__all__ = ["ProgressiveSizes", "check_sizes"]


class ProgressiveSizes:
    """The sizes of the training images: one stage per size, and a last stage at the model's size.

    The stages have equally many updates. If that is not possible, some have one more than the others.

    Args:
        model: network to train; it is called once with each size.
        sizes: shorter side of the images in each stage before the last one, in pixels, in ascending order.
        updates: number of updates of the training.

    Raises:
        InputError: fewer updates than stages; or as `check_sizes`.
    """

    def __init__(self, model: Any, sizes: Sequence[int], updates: int) -> None:
        check_sizes(model, sizes)
        self.sizes = tuple(sizes)
        self.full = min(model_data_config(model)["input_size"][1:])
        if updates <= len(sizes):
            shown = " ".join(map(str, sizes))
            raise InputError(
                f"`progressive_sizes={shown}` needs a training of at least {len(sizes) + 1} updates, but this one has "
                f"{updates}"
            )
        stages = len(sizes) + 1
        self.ends = [-(-stage * updates // stages) for stage in range(1, stages + 1)]  # updates done after each stage

    def resize(self, images: Tensor, step: int) -> Tensor:
        """Resize the images of an update.

        Args:
            images: (B, C, H, W), of the model's size.
            step: number of updates done before this one.

        Returns:
            (B, C, h, w), whose shorter side is that of the stage; in the last stage the images themselves.
        """
        stage = bisect.bisect_right(self.ends, step)
        if stage >= len(self.sizes):
            return images
        return resize(images, [self.sizes[stage]], antialias=True)

    def __str__(self) -> str:
        """Say how long each stage is."""
        lengths = [end - start for start, end in itertools.pairwise([0, *self.ends])]
        stages = [
            f"{size} pixels for {counted(n, 'update')}"
            for size, n in zip((*self.sizes, self.full), lengths, strict=True)
        ]
        return f"sizes of the training images: {', '.join(stages)}"


def check_sizes(model: Any, sizes: Sequence[int]) -> None:
    """Check by forward passes that a model takes images of some sizes.

    Args:
        model: network on any device, also on the meta device.
        sizes: shorter sides of the images, in pixels.

    Raises:
        InputError: a size that is not below the model's own, or that the model does not take.
    """
    parameter, input_size = next(model.parameters()), model_data_config(model)["input_size"]
    images = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    for size in sizes:
        if size >= (full := min(input_size[1:])):
            raise InputError(
                f"`progressive_sizes={size}` must be smaller than the model's size of {full} pixels, at which the "
                "training ends"
            )
        small = resize(images, [size])
        try:
            with torch.no_grad(), evaluating(model):
                model(small)
        except (AssertionError, RuntimeError, ValueError) as error:
            height, width = small.shape[2:]
            first_line = str(error).partition("\n")[0].rstrip(".")
            reason = f" ({first_line})" if first_line else ""
            raise InputError(
                f"`progressive_sizes={size}`: the model does not take images of {height} x {width} pixels{reason}: a "
                "ViT takes multiples of its patch size, and needs `model_kwargs=dynamic_img_size=true`"
            ) from error
