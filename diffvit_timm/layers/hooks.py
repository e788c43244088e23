"""Run images through a network and look at what its attention layers make of them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

__all__ = ["batches_for", "evaluating", "observe_layers"]


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in evaluation mode for the time; each of their modules is in its own again afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def batches_for(model: nn.Module, images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """The images in batches, on the model's device and in its dtype; of a batch with targets, too, the first part.

    Raises:
        ValueError: what are no batches of normalised images.
    """
    like = next(model.parameters())
    for batch in images.split(16) if isinstance(images, Tensor) else images:
        if isinstance(batch, (list, tuple)):
            batch = batch[0]
        if batch.ndim != 4 or not batch.is_floating_point():
            shape, kind = tuple(batch.shape), batch.dtype
            raise ValueError(f"images must be (n, C, H, W) and normalised, so of floats, not {shape} of {kind}")
        yield batch.to(like)


@torch.no_grad()
def observe_layers(
    model: VisionTransformer, layers: Sequence[nn.Module], images: Tensor | Iterable[Tensor], see: Callable[..., None]
) -> int:
    """Call `see(index, layer, tokens, output)` for each layer and batch, the model in evaluation mode for the time.

    Args:
        model: has timm's forward_features; not changed.
        layers: of the model, called with tokens (B, N, dim).
        images: (n, C, H, W), normalised as the model wants them, or batches of such, read once.
        see: what to do; must not keep the tensors if memory is not to grow.

    Returns:
        The number of images.

    Raises:
        ValueError: no images.
    """
    hooks = [
        layer.register_forward_hook(lambda module, args, output, index=index: see(index, module, args[0], output))
        for index, layer in enumerate(layers)
    ]
    count = 0
    try:
        with evaluating(model):
            for batch in batches_for(model, images):
                model.forward_features(batch)
                count += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("images is empty: at least one image is needed")
    return count
