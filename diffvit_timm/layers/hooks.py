"""Run images through a network and observe the inputs and outputs of its layers."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from .adapters.projections import output_projection

__all__ = ["Call", "batches_for", "evaluating", "observe_layers", "observing", "require_finite_values"]


class Call(NamedTuple):
    """The arguments of an attention layer in a forward pass, and the output of its output projection, (B, N, dim)."""

    args: tuple
    kwargs: dict
    output: Tensor


@contextlib.contextmanager
def observing(layers: Sequence[nn.Module], callback: Callable[..., None]) -> Iterator[None]:
    """Context manager: call a function after each forward pass of attention layers.

    Args:
        layers: attention layers.
        callback: function that is called as `callback(index, layer, call)`. If it stores the tensors, memory use grows
            with the number of images.
    """
    outputs: dict[int, Tensor] = {}
    hooks = []
    for index, layer in enumerate(layers):

        def store(_module, _args, output, index=index) -> None:
            outputs[index] = output

        def report(module, args, kwargs, _output, index=index) -> None:
            callback(index, module, Call(args, kwargs, outputs.pop(index)))

        hooks.append(output_projection(layer).register_forward_hook(store))
        hooks.append(layer.register_forward_hook(report, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Context manager: put models into evaluation mode, and restore the mode of each of their modules afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def batches_for(model: nn.Module, images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield images in batches, on the model's device and in its dtype.

    Args:
        model: model whose first parameter determines the device and dtype.
        images: normalised images, (n, C, H, W), which are split into batches of 16, or batches of such images. If a
            batch is a list or tuple, such as (images, targets), its first element is used.

    Raises:
        ValueError: a batch that is not (n, C, H, W) or not of a floating-point dtype.
    """
    parameter = next(model.parameters())
    for batch in images.split(16) if isinstance(images, Tensor) else images:
        if isinstance(batch, (list, tuple)):
            batch = batch[0]
        if batch.ndim != 4 or not batch.is_floating_point():
            shape, dtype = tuple(batch.shape), batch.dtype
            raise ValueError(f"images must be normalised floats of shape (n, C, H, W), not {dtype} of shape {shape}")
        yield batch.to(parameter)


@torch.no_grad()
def observe_layers(
    model: Any,
    layers: Sequence[nn.Module],
    images: Tensor | Iterable[Tensor],
    callback: Callable[..., None],
) -> int:
    """Run images through a model in evaluation mode, and call a function for each layer and batch.

    Args:
        model: model with timm's forward_features. It is not changed.
        layers: attention layers of the model.
        images: images, (n, C, H, W), normalised for the model, or batches of such images, which are read once.
        callback: as in `observing`.

    Returns:
        The number of images.

    Raises:
        ValueError: no images, or batches that `batches_for` does not accept.
    """
    count = 0
    with evaluating(model), observing(layers, callback):
        for batch in batches_for(model, images):
            model.forward_features(batch)
            count += len(batch)
    if not count:
        raise ValueError("images is empty: pass at least one image")
    return count


def require_finite_values(name: str, values: Tensor) -> None:
    """Check what a layer or a network computed on images.

    Args:
        name: name of the layer or network, for the error.
        values: its outputs, or statistics of them.

    Raises:
        InputError: a value is NaN or infinite.
    """
    if not values.isfinite().all():
        raise InputError(f"{name} has NaN or infinite values on the `images`: check them, and the weights")
