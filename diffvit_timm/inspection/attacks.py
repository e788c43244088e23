"""Adversarial examples: small changes of images, found from a network's gradients, that make it err.

Paper: `Towards Deep Learning Models Resistant to Adversarial Attacks` - https://arxiv.org/abs/1706.06083
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["projected_gradient_descent"]

STEP = 2.5  # step size times the number of steps, in units of epsilon, as in the authors' experiments


def projected_gradient_descent(
    logits_of: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Change every pixel by at most epsilon, so that the cross-entropy of the labels rises.

    It starts at a random change, and each step follows the sign of the gradient.

    Args:
        logits_of: differentiable function from images to logits, (B, classes), with the normalisation of its network.
        images: (B, C, H, W), from 0 to 1.
        labels: (B,), class indices.
        epsilon: largest change of a pixel and channel, such as 1 / 255.
        steps: number of steps.
        generator: source of the random start, on the device of the images.

    Returns:
        The changed images, from 0 to 1.
    """
    start = torch.rand(images.shape, generator=generator, device=images.device) * 2 - 1
    changed = (images + epsilon * start).clamp(0, 1)
    for _ in range(steps):
        changed = changed.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(logits_of(changed), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, changed)
        stepped = changed.detach() + STEP * epsilon / steps * gradient.sign()
        changed = (images + (stepped - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    return changed.detach()
