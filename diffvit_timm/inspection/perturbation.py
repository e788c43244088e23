"""Is what a heat map shows what the network uses? Deletion and insertion curves.

`RISE` - https://arxiv.org/abs/1806.07421, section 4.3: take the hottest patches away and the class should go, or show
them alone and it should come.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

__all__ = ["Curve", "area_under", "perturbation_curve"]

Curve = Literal["deletion", "insertion"]


@torch.inference_mode()
def perturbation_curve(
    model: VisionTransformer, images: Tensor, heat: Tensor, targets: Tensor, kind: Curve, steps: int = 14
) -> Tensor:
    """The probability of a class while the hottest patches are taken away, or shown, step by step.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised, so that 0 is the mean colour. What no patch covers stays as it is.
        heat: (B, rows, columns), of the patches; ties are in the order of the patches.
        targets: (B,), classes.
        kind: 'deletion' starts from the image, and patches become the mean colour; 'insertion' starts from the image
            blurred beyond recognition (a Gaussian of a sixteenth of its side), and patches become sharp.
        steps: how many times as many patches are changed, all in the end.

    Returns:
        (B, steps + 1), the first of nothing changed, the last of all.

    Raises:
        ValueError: heat of another number of images or of another grid than the model's, or too few steps.
    """
    B, _, height, width = images.shape
    rows, columns = heat.shape[-2:]
    grid = model.patch_embed.dynamic_feat_size((height, width))
    if heat.shape != (B, *grid):
        raise ValueError(f"heat {tuple(heat.shape)} must be {(B, *grid)}, of the patches of {tuple(images.shape)}")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    ranks = heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(B, 1, rows, columns)
    down, across = model.patch_embed.patch_size
    ranks = ranks.repeat_interleave(down, -2).repeat_interleave(across, -1).to(images.device)
    # the last of the patches may end before the image, or (dynamic_img_pad) beyond it
    ranks = F.pad(ranks, (0, width - across * columns, 0, height - down * rows), value=rows * columns)
    before, after = (images, torch.zeros_like(images)) if kind == "deletion" else (_blurred(images), images)
    counts = torch.linspace(0, rows * columns, steps + 1).round()
    curve = [model(torch.where(ranks < count, after, before)).float().softmax(dim=-1) for count in counts]
    return torch.stack([p.gather(-1, targets[:, None])[:, 0] for p in curve], dim=-1)


def _blurred(images: Tensor) -> Tensor:
    sigma = max(images.shape[-2:]) / 16
    kernel = 2 * min(round(2 * sigma), (min(images.shape[-2:]) - 1) // 2) + 1  # odd, and the padding less than the side
    return gaussian_blur(images, [kernel, kernel], [sigma, sigma])


def area_under(curve: Tensor) -> Tensor:
    """Area under curves (..., steps + 1) over the share of patches, 0 to 1, by trapezoids: (...)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1))
