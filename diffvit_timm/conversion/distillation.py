"""Layer-wise distillation: each attention layer of a converted net learns the output of the source's."""

import copy
from collections.abc import Sequence

import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor

from ..layers.hooks import evaluating, observe_layers
from ..models.diff_vision_transformer import DiffVisionTransformer

__all__ = ["distill_layers"]


def distill_layers(
    source: VisionTransformer,
    model: DiffVisionTransformer,
    images: Tensor | Sequence[Tensor],
    passes: int = 4,
    lr: float = 3e-4,
) -> None:
    """Train the projections of every attention layer, in place, on the relative squared error of its output.

    Each layer learns on the source's own tokens, so no gradient passes between layers and memory is that of one. Adam
    with a learning rate that falls linearly from pass to pass. A layer that is no nearer to its source in the end, as
    one that was exact may be, gets its weights back. lambda stays as it is: a lambda of 0 would be the nearest to the
    source, and no differential attention.

    Args:
        source: the plain timm VisionTransformer, not changed.
        model: converted from it.
        images: (n, C, H, W), normalised as the source wants them, or batches of such, read once a pass and once more.
        passes: over the images.
        lr: of the first pass.

    Raises:
        ValueError: no images, layers that are frozen, or float16, in which Adam's squared gradients are 0.
    """
    if next(model.parameters()).dtype == torch.float16:
        raise ValueError("a float16 model cannot learn: distill it in float32 or bfloat16, and cast it then")
    layers = model.differential_layers()
    if not all(weight.requires_grad for layer in layers for weight in (layer.qkv.weight, layer.proj.weight)):
        raise ValueError("frozen layers cannot learn: set requires_grad of qkv and proj")
    before = copy.deepcopy(layers)
    errors = torch.zeros(len(layers), 2, dtype=torch.float64)
    optimizers = [torch.optim.Adam([*layer.qkv.parameters(), *layer.proj.parameters()], lr=lr) for layer in layers]

    def learn(index: int, attn: Attention, tokens: Tensor, target: Tensor) -> None:
        with torch.enable_grad():
            loss = (layers[index](tokens) - target).square().sum() / target.square().sum()
            loss.backward()
        optimizers[index].step()
        layers[index].zero_grad()  # of lambda too, which the optimizer does not know

    def compare(index: int, attn: Attention, tokens: Tensor, target: Tensor) -> None:
        both = [(layer(tokens) - target).square().sum() for layer in (before[index], layers[index])]
        errors[index] += torch.stack(both).cpu()

    plain = [block.attn for block in source.blocks]
    with evaluating(model):
        for done in range(passes):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = lr * (1 - done / passes)
            observe_layers(source, plain, images, learn)
        observe_layers(source, plain, images, compare)
        for layer, old, (error, learned) in zip(layers, before, errors.tolist(), strict=True):
            if not learned < error:
                layer.load_state_dict(old.state_dict())
