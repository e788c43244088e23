"""A feature pyramid on a plain ViT, for detectors that want maps of several strides.

`Li et al. 2022` (ViTDet) - https://arxiv.org/abs/2203.16527, section 3: all maps come from the last one, by
transposed convolutions and pooling, without a top-down pathway.
"""

from collections import OrderedDict
from typing import Any

from timm.layers import LayerNorm2d
from timm.models import FeatureInfo
from torch import Tensor, nn

__all__ = ["FeaturePyramid"]

SCALES = (4.0, 2.0, 1.0, 0.5)  # resolutions relative to the last map


class FeaturePyramid(nn.Module):
    """Maps of the strides 4, 8, 16 and 32 from a ViT with patches of 16 pixels.

    It is a backbone of torchvision's detectors, and has `feature_info` like timm's `features_only` networks.

    Args:
        backbone: timm network, plain or differential. Its own head is removed. For images of several sizes create a ViT
            with `dynamic_img_size=True`.
        out_channels: channels of every map.

    Attributes:
        out_channels: as given.
        feature_info: channels, stride and name of each map.
    """

    def __init__(self, backbone: Any, out_channels: int = 256) -> None:
        super().__init__()
        backbone.reset_classifier(0)
        self.backbone, self.out_channels = backbone, out_channels
        last = backbone.feature_info[-1]
        width, stride = last["num_chs"], last["reduction"]
        names = [str(place) for place in range(len(SCALES))]
        self.levels = nn.ModuleDict(
            {name: _level(width, s, out_channels) for name, s in zip(names, SCALES, strict=True)}
        )
        info = [
            {"num_chs": out_channels, "reduction": round(stride / scale), "module": f"levels.{name}"}
            for name, scale in zip(names, SCALES, strict=True)
        ]
        self.feature_info = FeatureInfo(info, tuple(range(len(SCALES))))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps of images, (B, C, H, W).

        Returns:
            '0' to '3' -> maps, (B, out_channels, h, w), the finest first.
        """
        (last,) = self.backbone.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        return OrderedDict((name, level(last)) for name, level in self.levels.items())


def _level(width: int, scale: float, out_channels: int) -> nn.Sequential:
    """Resample the last map, then bring it to the channels of the pyramid."""
    layers: list[nn.Module] = []
    if scale == 0.5:
        layers.append(nn.MaxPool2d(2))
    for step in range({4.0: 2, 2.0: 1}.get(scale, 0)):
        if step:
            layers += [LayerNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )
