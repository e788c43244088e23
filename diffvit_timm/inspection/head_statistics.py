"""What each head of each layer looks at, in numbers: how many tokens, how far away, how much off the image.

`Do Vision Transformers See Like Convolutional Neural Networks?` - https://arxiv.org/abs/2108.08810 (distance)
`Vision Transformers Need Registers` - https://arxiv.org/abs/2309.16588 (mass on tokens that are no patches)
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .attention_maps import AttentionMaps, CapturedAttention

__all__ = ["HeadStatistics", "attention_distance", "attention_entropy", "head_statistics", "prefix_share"]

Which = Literal["attended", "map1", "map2"]


class HeadStatistics(NamedTuple):
    """A number a layer and head, (L, H): means over images and over the tokens that look.

    Attributes:
        entropy: of what a token looks at, in nats; log N where it looks at all N tokens alike.
        distance: from a patch to the patches that it looks at, in pixels.
        prefix: share of the attention on class, distillation and register tokens.
    """

    entropy: Tensor
    distance: Tensor
    prefix: Tensor


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy of the rows in nats, mean over images and rows: (B, H, N, N), rows sum to 1, to (H,)."""
    return -torch.special.xlogy(attention, attention).sum(dim=-1).mean(dim=(0, 2))


def attention_distance(attention: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Mean distance between the centres of a patch and of those it looks at, prefix tokens left out, (H,), in pixels.

    Args:
        attention: (B, H, N, N), rows sum to 1; the last tokens are the patches.
        grid: rows and columns of patches.
        patch_size: height and width of a patch, in pixels.
    """
    count = grid[0] * grid[1]
    places = torch.cartesian_prod(*(torch.arange(n, dtype=attention.dtype) for n in grid)) * torch.tensor(patch_size)
    distances = torch.cdist(places, places).to(attention)
    patches = attention[..., -count:, -count:]
    seen = patches.sum(dim=-1)
    mean = (patches * distances).sum(dim=-1) / seen.where(seen > 0, 1)  # a row may be all on prefix tokens
    return (mean * (seen > 0)).sum(dim=(0, 2)) / (seen > 0).sum(dim=(0, 2)).clamp(min=1)


def prefix_share(attention: Tensor, num_prefix_tokens: int) -> Tensor:
    """Share of the attention on the prefix tokens, mean over images and rows: (B, H, N, N) to (H,)."""
    return attention[..., :num_prefix_tokens].sum(dim=-1).mean(dim=(0, 2))


def head_statistics(captured: CapturedAttention, which: Which = "attended") -> HeadStatistics:
    """Entropy, distance and prefix share of every layer and head.

    Args:
        captured: of a forward pass.
        which: 'attended' (the positive part of A1 - lambda A2, rows summing to 1), 'map1' or 'map2'.

    Raises:
        ValueError: map2 of plain attention.
    """
    rows = []
    for layer in captured:
        attention = _chosen(layer.maps(), which)
        distance = attention_distance(attention, captured.grid, captured.model.patch_embed.patch_size)
        share = prefix_share(attention, captured.num_prefix_tokens)
        rows.append(torch.stack([attention_entropy(attention), distance, share]))
    return HeadStatistics(*torch.stack(rows, dim=1))


def _chosen(maps: AttentionMaps, which: Which) -> Tensor:
    attention = getattr(maps, which)
    if attention is None:
        raise ValueError(f"which={which!r} is of differential attention: a plain layer has map1 alone")
    return attention
