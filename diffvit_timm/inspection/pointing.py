"""Whether heat maps point at an object: the share of the heat that lies on it.

`Score-CAM` - https://arxiv.org/abs/1910.01279, section 4.3: the energy-based pointing game
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["heat_on_masks"]


def heat_on_masks(heat: Tensor, masks: Tensor) -> Tensor:
    """Compute the share of the heat of each image that lies on its object.

    The heat of a patch is spread evenly over its pixels. So an even heat map has the object's share of the area.

    Args:
        heat: heat of the patches, (B, rows, columns), not negative.
        masks: share of each pixel that belongs to the object, (B, H, W), in [0, 1], for the images as the network sees
            them.

    Returns:
        The shares, (B,), in [0, 1]; 0 for a heat map without any heat.

    Raises:
        ValueError: heat that is negative.
    """
    if (heat < 0).any():
        raise ValueError(f"the least heat is {heat.min():g}, but a share needs heat that is not negative")
    _, rows, columns = heat.shape
    covered = F.adaptive_avg_pool2d(masks[:, None], (rows, columns))[:, 0]  # (B, rows, columns)
    return (heat * covered).sum((-2, -1)) / heat.sum((-2, -1)).clamp(min=1e-30)
