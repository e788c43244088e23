"""Where the tokens of attention layers lie in the image."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models.gemma4_vit import Gemma4PatchEmbed
from timm.models.naflexvit import NaFlexEmbeds
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn

__all__ = ["Layout", "global_layout", "join_windows", "patch_embedding", "patch_grid", "window_layout"]


class Layout(NamedTuple):
    """Where the tokens of an attention layer lie.

    Attributes:
        grid: rows and columns of the patches of the whole image.
        window: rows and columns of the patches that attend to each other; `grid` for attention to the whole image.
        places: index in the grid, row by row, of each token of each window of an image, (windows, N); -1 for padding.
            None for a network without windows.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    places: Tensor | None = None


def patch_embedding(model: nn.Module) -> Any:
    """Return the module that divides images into patches.

    Raises:
        TypeError: a model whose grid of patches is not known.
    """
    for module in model.modules():
        if hasattr(module, "dynamic_feat_size") or isinstance(module, (NaFlexEmbeds, Gemma4PatchEmbed)):
            return module
    raise TypeError(
        f"the patches of a {type(model).__name__} do not come from timm's PatchEmbed, so their grid is unknown"
    )


def patch_grid(embedding: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of patches of an image.

    Args:
        embedding: result of `patch_embedding`.
        image_size: height and width of the image that the model gets, in pixels.
    """
    if hasattr(embedding, "dynamic_feat_size"):
        rows, columns = embedding.dynamic_feat_size(image_size)
        return rows, columns
    height, width = embedding.patch_size
    return image_size[0] // height, image_size[1] // width


def global_layout(grid: tuple[int, int]) -> Layout:
    """Return the layout of a layer that attends to the whole image."""
    return Layout(grid, grid)


def window_layout(block: Any, grid: tuple[int, int]) -> Layout:
    """Return the layout of a layer that attends within windows.

    Args:
        block: block of Swin, Swin v2 or SAM that the layer is a part of.
        grid: rows and columns of the input of the block.
    """
    window = to_2tuple(block.window_size)
    if 0 in window:  # SAM's layers that attend to the whole image
        window = grid
    down, right = getattr(block, "shift_size", (0, 0))
    index = torch.arange(grid[0] * grid[1]).view(1, *grid, 1)
    shifted = index.roll((-down, -right), dims=(1, 2))
    padded = F.pad(shifted, (0, 0, 0, -grid[1] % window[1], 0, -grid[0] % window[0]), value=-1)
    return Layout(grid, window, window_partition(padded, window).flatten(1))


def join_windows(rows: Tensor, layout: Layout) -> Tensor:
    """Put the values of the tokens of all windows in their places.

    Args:
        rows: one value per token, (B * windows, ..., N), the windows of an image together.
        layout: layout with windows.

    Returns:
        The values, (B, ..., rows, columns). Those of padding are dropped.
    """
    places = layout.places
    assert places is not None
    values = rows.unflatten(0, (-1, len(places))).movedim(1, -2).flatten(-2)  # (B, ..., windows * N)
    places = places.flatten().to(rows.device)
    joined = values.new_zeros(*values.shape[:-1], layout.grid[0] * layout.grid[1])
    joined[..., places[places >= 0]] = values[..., places >= 0]
    return joined.unflatten(-1, layout.grid)
