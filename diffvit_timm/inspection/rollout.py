"""Attention through all layers: rollout, and relevance for a class.

`Quantifying Attention Flow in Transformers` - https://arxiv.org/abs/2005.00928, section 3 (rollout)
`Generic Attention-model Explainability` - https://arxiv.org/abs/2103.15679, equations 5 and 6 (class relevance)
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..layers.hooks import evaluating
from .attention_maps import AttentionMaps, CapturedAttention, capture_attention, check_heat_maps, stochastic

__all__ = ["HeatMaps", "Part", "class_relevance", "heat_maps", "mixing", "rollout"]

BATCH_SIZE = 4  # of heat_maps: the graph of a ViT-B at 384 pixels takes 0.4 GiB per image

Part = Literal["clamp", "positive", "negative", "abs"]


def mixing(maps: AttentionMaps, part: Part = "clamp") -> Tensor:
    """Combine the signed maps of a layer's heads into one matrix whose rows sum to 1.

    Products of the signed maps themselves, whose rows sum to 1 - lambda, explode or vanish over the layers. Products
    of these matrices do not.

    Args:
        maps: maps of the layer.
        part: part of the signed maps to use. 'clamp' sets each head's negative entries to 0, rescales its rows to sum
            to 1, and averages over the heads. 'positive', 'negative' and 'abs' average over the heads first, where
            entries of opposite sign cancel, then take that part and rescale its rows to sum to 1.

    Returns:
        The matrix, (B, N, N). A row without any entry of that part is the row of the identity.

    Raises:
        ValueError: an unknown part.
    """
    if part not in get_args(Part):
        raise ValueError(f"part={part!r} is not known: choose one of {', '.join(map(repr, get_args(Part)))}")
    if part == "clamp":
        return maps.attended.mean(dim=1)
    mean = maps.difference.mean(dim=1)  # (B, N, N)
    return stochastic({"positive": mean.clamp(min=0), "negative": (-mean).clamp(min=0), "abs": mean.abs()}[part])


def rollout(captured: CapturedAttention, part: Part = "clamp", residual: float = 0.5) -> Tensor:
    """Compute the attention rollout: the product over the layers of residual I + (1 - residual) M.

    M is the mixing matrix of a layer. Only one layer's maps are in memory at a time.

    Args:
        captured: attention of a forward pass.
        part: part of the signed maps to use, as in `mixing`.
        residual: weight of the skip connection, in [0, 1].

    Returns:
        The share of each input token (column) in each output token (row), (B, N, N). Rows sum to 1.

    Raises:
        ValueError: a residual out of range, an unknown part, or no forward pass.
        TypeError: as `check_heat_maps`.
    """
    if not 0 <= residual <= 1:
        raise ValueError(f"residual={residual} must be in [0, 1]")
    check_heat_maps(captured.model)
    product = None
    for layer in captured:
        matrix = mixing(layer.maps(), part)  # (B, N, N)
        matrix = residual * torch.eye(matrix.shape[-1], device=matrix.device) + (1 - residual) * matrix
        product = matrix if product is None else matrix @ product  # later layers multiply from the left
    assert product is not None
    return product


def class_relevance(
    model: Any, images: Tensor, targets: Tensor | None = None
) -> tuple[Tensor, Tensor, CapturedAttention]:
    """Compute how much each token contributes to the logit of a class.

    The relevance R starts as the identity, and each layer adds E (gradient * map)^+ R to it, where E is the mean over
    the heads. The map is A1 - lambda A2. It has a sign, and so has its gradient: negative attention to a patch that
    speaks against the class (negative gradient) counts in favour of the class.

    Args:
        model: ViT with a head. It is in evaluation mode during the call. The `grad` of its parameters does not change.
        images: normalised images, (B, C, H, W).
        targets: classes, (B,); None for the classes that the model predicts.

    Returns:
        The relevance of each input token (column) for each output token (row), (B, N, N); the logits, (B, classes);
        and the captured attention, whose `output_rows` and `on_patches` turn the relevance into a heat map.

    Raises:
        ValueError: a model without a head.
        TypeError: as `check_heat_maps`.
    """
    if model.num_classes == 0:
        raise ValueError("the model has no head, so it has no classes: create it with num_classes")
    check_heat_maps(model)
    checkpointing = [module for module in model.modules() if getattr(module, "grad_checkpointing", False)]
    try:
        for module in checkpointing:  # a checkpointed block does not record the nodes that the gradient needs
            module.grad_checkpointing = False
        with torch.enable_grad(), evaluating(model), capture_attention(model) as captured:
            # The input requires a gradient so that there is a graph even if all parameters are frozen.
            logits = model(images.detach().requires_grad_())  # (B, classes)
            chosen = logits.argmax(dim=-1) if targets is None else targets
            score = logits.gather(-1, chosen[:, None]).sum()  # images do not mix, so each keeps its own gradient
            gradients = torch.autograd.grad(score, [layer.merged for layer in captured])  # (B, N, dim) per layer
    finally:
        for module in checkpointing:
            module.grad_checkpointing = True
    relevance = torch.eye(captured[0].tokens.shape[1], device=images.device)
    for layer, gradient in zip(captured, gradients, strict=True):
        maps, map_gradient = layer.map_gradient(gradient)  # (B, H, N, N) each
        weights = (map_gradient * maps.difference).clamp(min=0).mean(dim=1)  # (B, N, N), equation 5
        relevance = relevance + weights @ relevance  # equation 6
    return relevance, logits.detach(), captured


class HeatMaps(NamedTuple):
    """Heat maps of images, (B, rows, columns) each, with one value per patch, and the logits.

    Attributes:
        last_layer: attention of the output token in the last layer, mean over the heads.
        rollout: attention rollout through all layers.
        relevance: relevance for the class, from gradients.
        logits: logits of the images, (B, classes).
    """

    last_layer: Tensor
    rollout: Tensor
    relevance: Tensor
    logits: Tensor


def heat_maps(model: Any, images: Tensor, targets: Tensor | None = None) -> HeatMaps:
    """Compute three kinds of heat maps of images.

    The images are processed in batches of 4, so that the memory does not grow with their number. The arguments and
    errors are those of `class_relevance`.
    """
    batches = images.split(BATCH_SIZE)
    classes = [None] * len(batches) if targets is None else targets.split(BATCH_SIZE)
    parts = [_heat_maps(model, *part) for part in zip(batches, classes, strict=True)]
    return HeatMaps(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _heat_maps(model: Any, images: Tensor, targets: Tensor | None) -> HeatMaps:
    relevance, logits, captured = class_relevance(model, images, targets)
    matrices = captured[-1].maps().attended.mean(dim=1), rollout(captured), relevance  # (B, N, N) each
    last_layer, through_layers, relevance = (captured.on_patches(captured.output_rows(matrix)) for matrix in matrices)
    return HeatMaps(last_layer, through_layers, relevance, logits)
