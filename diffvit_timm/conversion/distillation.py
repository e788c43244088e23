"""Layer-wise distillation: each attention layer of a converted network learns the output of the source's layer."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers.adapters import attention_output, check_layers
from ..layers.adapters.projections import input_projections, output_projection
from ..layers.base import differential_layers
from ..layers.hooks import Call, evaluating, observe_layers, require_finite_values

__all__ = ["distill_layers"]


def distill_layers(
    source: nn.Module,
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    passes: int = 4,
    lr: float = 3e-4,
) -> None:
    """Train the projections of every attention layer, in place, on the relative squared error of the layer's output.

    Each layer learns from the source's own tokens, so no gradient flows between layers, and the memory is that of one
    layer. The optimizer is Adam; its learning rate falls linearly from pass to pass. A layer whose error did not fall,
    which can happen if it was exact before, gets its old weights back. Lambda is not trained: a lambda of 0 would be
    closest to the source, and would not be differential attention.

    Args:
        source: the plain network; it is not changed.
        model: the network that was converted from it.
        images: (n, C, H, W), normalised as the source expects, or a sequence of such batches. They are read once per
            pass, and once more for the comparison at the end.
        passes: number of passes over the images.
        lr: learning rate of the first pass.

    Raises:
        InputError: a layer whose output on the images is not finite.
        ValueError: no images, frozen layers, or a float16 model, in which Adam's squared gradients underflow to 0.
    """
    if next(model.parameters()).dtype == torch.float16:
        raise ValueError("a float16 model cannot learn: distill it in float32 or bfloat16, and convert it afterwards")
    layers = differential_layers(model)
    projections = [[*input_projections(layer), output_projection(layer)] for layer in layers]
    if not all(linear.weight.requires_grad for linears in projections for linear in linears):
        raise ValueError("frozen layers cannot learn: set requires_grad of their projections")
    old_layers = copy.deepcopy(layers)
    errors = torch.zeros(len(layers), 2, dtype=torch.float64)  # squared error of each layer before and after
    optimizers = [
        torch.optim.Adam([p for linear in linears for p in linear.parameters()], lr=lr) for linears in projections
    ]

    source_layers = check_layers(source)
    names = list(source_layers)

    def train_layer(index: int, plain: nn.Module, call: Call) -> None:
        require_finite_values(names[index], call.output)
        with torch.enable_grad():
            error = attention_output(layers[index], call.args, call.kwargs) - call.output
            loss = error.square().sum() / call.output.square().sum()
            loss.backward()
        optimizers[index].step()
        layers[index].zero_grad()  # the layer's, not the optimizer's: lambda has a gradient too

    def compare_layer(index: int, plain: nn.Module, call: Call) -> None:
        outputs = [attention_output(layer, call.args, call.kwargs) for layer in (old_layers[index], layers[index])]
        both = [(output - call.output).square().sum() for output in outputs]
        errors[index] += torch.stack(both).cpu()

    plain_layers = list(source_layers.values())
    with evaluating(model):
        for done in range(passes):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = lr * (1 - done / passes)
            observe_layers(source, plain_layers, images, train_layer)
        observe_layers(source, plain_layers, images, compare_layer)
        for name, layer, old_layer, (old_error, error) in zip(names, layers, old_layers, errors, strict=True):
            if not error < old_error:  # also true for NaN
                layer.load_state_dict(old_layer.state_dict())
            require_finite_values(name, old_error)
