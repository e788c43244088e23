"""Faithfulness of heat maps: does the network use what they show? Deletion and insertion curves.

`RISE` - https://arxiv.org/abs/1806.07421, section 4.3: if a heat map is faithful, the probability of the class falls
when the hottest patches are deleted, and rises when they are inserted into an image without content.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ..models.outputs import probabilities

__all__ = ["Curve", "area_under", "perturbation_curve"]

Curve = Literal["deletion", "insertion"]


@torch.inference_mode()
def perturbation_curve(
    model: VisionTransformer, images: Tensor, heat: Tensor, targets: Tensor, kind: Curve, steps: int = 14
) -> Tensor:
    """Compute the probability of a class while the patches are deleted or inserted step by step, hottest first.

    Args:
        model: ViT in evaluation mode.
        images: images, (B, C, H, W), normalised so that 0 is the mean colour. Pixels that no patch covers do not
            change.
        heat: heat of the patches, (B, rows, columns). Patches of equal heat change in the order of their index.
        targets: classes, (B,).
        kind: 'deletion' starts from the image, and patches become the mean colour. 'insertion' starts from the image
            blurred beyond recognition (a Gaussian whose sigma is a sixteenth of the longer side), and patches become
            sharp.
        steps: number of steps, after the last of which all patches have changed.

    Returns:
        The probabilities, (B, steps + 1): first with no patch changed, last with all of them.

    Raises:
        ValueError: heat of another shape than the images and the model's grid, or fewer than one step.
    """
    B, _, height, width = images.shape
    rows, columns = heat.shape[-2:]
    grid = model.patch_embed.dynamic_feat_size((height, width))
    if heat.shape != (B, *grid):
        raise ValueError(
            f"heat of shape {tuple(heat.shape)} must have the shape {(B, *grid)}, one value per patch of images of "
            f"shape {tuple(images.shape)}"
        )
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    # The rank of each patch, 0 for the hottest: the second argsort inverts the permutation.
    ranks = heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(B, 1, rows, columns)
    # Repeat each rank over the pixels of its patch: (B, 1, H, W).
    patch_height, patch_width = model.patch_embed.patch_size
    ranks = ranks.repeat_interleave(patch_height, -2).repeat_interleave(patch_width, -1).to(images.device)
    # The last patch may end before the image, or beyond it (dynamic_img_pad); a negative padding crops.
    ranks = F.pad(ranks, (0, width - patch_width * columns, 0, height - patch_height * rows), value=rows * columns)
    before, after = (images, torch.zeros_like(images)) if kind == "deletion" else (_blur(images), images)
    counts = torch.linspace(0, rows * columns, steps + 1).round()  # patches changed at each point of the curve
    curve = [probabilities(model, model(torch.where(ranks < count, after, before))) for count in counts]
    return torch.stack([p.gather(-1, targets[:, None])[:, 0] for p in curve], dim=-1)


def _blur(images: Tensor) -> Tensor:
    sigma = max(images.shape[-2:]) / 16
    # The kernel is odd, and its padding is smaller than the shorter side.
    kernel = 2 * min(round(2 * sigma), (min(images.shape[-2:]) - 1) // 2) + 1
    return gaussian_blur(images, [kernel, kernel], [sigma, sigma])


def area_under(curve: Tensor) -> Tensor:
    """Compute the area under curves, (..., steps + 1), over the share of patches from 0 to 1, by the trapezoidal rule.

    Returns:
        The areas, (...).
    """
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))
