"""Semantic segmentation: a head on the patch features of a timm network.

`Oquab et al. 2023` (DINOv2) - https://arxiv.org/abs/2304.07193, section 7.4, for the linear head
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["Head", "SegmentationNetwork"]

Head = Literal["linear", "conv"]
WIDTH = 256  # channels of the convolutional head
GROUPS = 32  # of its group norms


class SegmentationNetwork(nn.Module):
    """A network with one output per class at every place of its feature map.

    Args:
        backbone: timm network, plain or differential. Its own head is removed.
        classes: number of classes.
        head: `linear`: a batch norm and a linear layer at every place; `conv`: a projection to 256 channels and two
            convolutions, each at twice the resolution.
        layers: number of last blocks (of networks with stages: last stages) whose features are concatenated.
        frozen: whether only the head is trained.

    Attributes:
        backbone, head: the two parts.
        frozen: as given.

    Raises:
        InputError: fewer blocks than layers.
    """

    def __init__(
        self, backbone: Any, classes: int, head: Head = "linear", layers: int = 4, frozen: bool = True
    ) -> None:
        super().__init__()
        backbone.reset_classifier(0)
        self.backbone, self.layers, self.frozen = backbone, layers, frozen
        width = self._width()
        self.head = _linear_head(width, classes) if head == "linear" else _conv_head(width, classes)
        self.backbone.requires_grad_(not frozen)

    def _width(self) -> int:
        """Return the number of channels of the feature map, by a forward pass of an empty image."""
        config = self.backbone.pretrained_cfg
        size = getattr(getattr(self.backbone, "patch_embed", None), "img_size", None) or config["input_size"][-2:]
        weight = next(self.backbone.parameters())
        with torch.no_grad():
            return self.features(
                torch.zeros(1, config["input_size"][0], *size, device=weight.device, dtype=weight.dtype)
            ).shape[1]

    def features(self, images: Tensor) -> Tensor:
        """Compute the feature map of images, (B, 3, H, W) -> (B, channels, h, w), at the finest resolution it has."""
        try:
            maps = self.backbone.forward_intermediates(images, indices=self.layers, norm=True, intermediates_only=True)
        except AssertionError as error:
            raise InputError(f"`layers={self.layers}` is not possible with this network: {error}") from error
        size = max((part.shape[-2:] for part in maps), key=lambda shape: shape[0] * shape[1])
        return torch.cat([resize(part, size) for part in maps], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, (B, classes, h, w), from normalised images, (B, 3, H, W); see `resize`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.features(images)
        logits: Tensor = self.head(features)
        return logits

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        """Set the mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


def resize(maps: Tensor, size: Any) -> Tensor:
    """Interpolate maps, (B, C, h, w), bilinearly to a size (H, W)."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=tuple(size), mode="bilinear")


def _linear_head(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, classes, 1))


def _conv_head(width: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(width, WIDTH, 1), nn.GroupNorm(GROUPS, WIDTH), nn.GELU()]
    for _ in range(2):
        layers += [
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, WIDTH), nn.GELU()
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.Conv2d(WIDTH, classes, 1))
