"""Where does what the network says come from: attention followed through all layers.

`Quantifying Attention Flow in Transformers` - https://arxiv.org/abs/2005.00928, section 3 (rollout)
`Generic Attention-model Explainability` - https://arxiv.org/abs/2103.15679, equations 5 and 6 (class relevance)
"""

from typing import Literal, NamedTuple, get_args

import torch
from timm.models import VisionTransformer
from torch import Tensor

from ..layers.hooks import evaluating
from .attention_maps import AttentionMaps, CapturedAttention, capture_attention, stochastic

__all__ = ["HeatMaps", "Part", "class_relevance", "heat_maps", "mixing", "rollout"]

AT_ONCE = 4  # images whose graph is in memory: 0.4 GiB each of ViT-B at 384 pixels

Part = Literal["clamp", "positive", "negative", "abs"]


def mixing(maps: AttentionMaps, part: Part = "clamp") -> Tensor:
    """One stochastic matrix of the signed maps of a layer's heads.

    Products of signed maps whose rows sum to 1 - lambda explode or vanish; this is what can be multiplied.

    Args:
        maps: of the layer.
        part: 'clamp': each head without its negative entries, rows summing to 1 again, then the mean of the heads;
            'positive', 'negative', 'abs': the mean of the heads first, where they may cancel, then that part of it,
            rows summing to 1.

    Returns:
        (B, N, N), rows sum to 1; a row that has nothing of the part is that of the identity: its token stays.

    Raises:
        ValueError: an unknown part.
    """
    if part not in get_args(Part):
        raise ValueError(f"part={part!r} is not known: choose one of {', '.join(map(repr, get_args(Part)))}")
    if part == "clamp":
        return maps.attended.mean(dim=1)
    mean = maps.difference.mean(dim=1)
    return stochastic({"positive": mean.clamp(min=0), "negative": (-mean).clamp(min=0), "abs": mean.abs()}[part])


def rollout(captured: CapturedAttention, part: Part = "clamp", residual: float = 0.5) -> Tensor:
    """Attention rollout: the product of all layers, each `residual` I + (1 - `residual`) times its mixing matrix.

    Args:
        captured: of a forward pass.
        part: of the signed maps, as in `mixing`.
        residual: share of the skip connection, in [0, 1].

    Returns:
        (B, N, N), rows sum to 1: how much of each input token is in each output token. One layer's maps are in memory
        at a time.

    Raises:
        ValueError: a share out of range, an unknown part, or no forward pass.
    """
    if not 0 <= residual <= 1:
        raise ValueError(f"residual={residual} must be in [0, 1]")
    product = None
    for layer in captured:
        matrix = mixing(layer.maps(), part)
        matrix = residual * torch.eye(matrix.shape[-1], device=matrix.device) + (1 - residual) * matrix
        product = matrix if product is None else matrix @ product
    assert product is not None
    return product


def class_relevance(
    model: VisionTransformer, images: Tensor, targets: Tensor | None = None
) -> tuple[Tensor, Tensor, CapturedAttention]:
    """What speaks for a class: R + mean over heads of (gradient * map)^+ R, layer after layer, from R = I.

    The map is signed, A1 - lambda A2, and so is its gradient: attention taken away from a patch that speaks against
    the class counts for it.

    Args:
        model: in evaluation mode for the time; its parameters' gradients are left alone.
        images: (B, C, H, W), normalised as the model wants them.
        targets: (B,), the classes; None: those that the model predicts.

    Returns:
        (B, N, N), the logits (B, classes), and what was captured, for `output_rows` and `on_patches`.

    Raises:
        ValueError: a model without a head.
        TypeError: a model whose attention is not known, as in `capture_attention`.
    """
    if model.num_classes == 0:
        raise ValueError("the model has no head, and so no class to speak for: create it with num_classes")
    checkpointing = model.grad_checkpointing
    try:
        model.set_grad_checkpointing(False)  # what is not kept has no gradient
        with torch.enable_grad(), evaluating(model), capture_attention(model) as captured:
            logits = model(images.detach().requires_grad_())
            chosen = logits.argmax(dim=-1) if targets is None else targets
            score = logits.gather(-1, chosen[:, None]).sum()  # images do not mix: each has its own gradient
            gradients = torch.autograd.grad(score, [layer.merged for layer in captured])
    finally:
        model.set_grad_checkpointing(checkpointing)
    relevance = torch.eye(captured[0].tokens.shape[1], device=images.device)
    for layer, gradient in zip(captured, gradients, strict=True):
        maps, slope = layer.map_gradient(gradient)
        relevance = relevance + (slope * maps.difference).clamp(min=0).mean(dim=1) @ relevance
    return relevance, logits.detach(), captured


class HeatMaps(NamedTuple):
    """What a network's output rests on, (B, rows, columns) of its patches each, and what it says.

    Attributes:
        last_layer: what the last layer attends to, mean over its heads.
        rollout: through all layers.
        relevance: for the class, by gradients.
        logits: (B, classes).
    """

    last_layer: Tensor
    rollout: Tensor
    relevance: Tensor
    logits: Tensor


def heat_maps(model: VisionTransformer, images: Tensor, targets: Tensor | None = None) -> HeatMaps:
    """Three answers to where on the images a network looked; arguments and errors as in `class_relevance`.

    A few images at a time are in memory, however many there are.
    """
    few = images.split(AT_ONCE)
    chosen = [None] * len(few) if targets is None else targets.split(AT_ONCE)
    parts = [_heat_maps(model, *part) for part in zip(few, chosen, strict=True)]
    return HeatMaps(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _heat_maps(model: VisionTransformer, images: Tensor, targets: Tensor | None) -> HeatMaps:
    relevance, logits, captured = class_relevance(model, images, targets)
    last_layer = captured[-1].maps().attended.mean(dim=1)
    last_layer, through_all, relevance = (
        captured.on_patches(captured.output_rows(matrix)) for matrix in (last_layer, rollout(captured), relevance)
    )
    return HeatMaps(last_layer, through_all, relevance, logits)
