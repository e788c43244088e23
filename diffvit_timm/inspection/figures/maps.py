"""Maps without the image under them: attention of every head, the two branches of a layer, position embeddings."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..colours import AMOUNT, SIGNED
from .picture import Picture, draw_picture, hide_ticks, label_colour_bar, padded_figure

__all__ = ["plot_branches", "plot_heads", "plot_positions"]


def plot_heads(maps: Sequence[np.ndarray], title: str, signed: bool) -> Figure:
    """Plot the attention of the output to the patches, with one row per layer and one column per head.

    The panels of a row share one colour scale, whose limits are written at its left.

    Args:
        maps: attention to the patches in each layer, (H, rows, columns). Layers may have different shapes.
        title: title of the figure.
        signed: whether the maps have a sign. If so, the scale is symmetric around 0; otherwise it starts at 0.
    """
    layers, heads = len(maps), max(map(len, maps))
    width = max(1.08 * heads + 2.2, 5.5)  # inches; the title needs 5.5
    figure = padded_figure(width, 0.92 * layers + 1.2, compress=True)
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        limit = np.abs(maps[layer]).max() or 1.0
        for head in range(heads):
            axis = axes[layer, head]
            if head >= len(maps[layer]):
                axis.set_axis_off()
                continue
            hide_ticks(axis)
            low = -limit if signed else 0
            axis.imshow(maps[layer][head], cmap=SIGNED if signed else AMOUNT, vmin=low, vmax=limit)
            if layer == 0:
                axis.set_title(f"head {head}", fontsize=8)
        sign = "±" if signed else "0 to "
        axes[layer, 0].set_ylabel(f"layer {layer}\n{sign}{limit:.2g}", fontsize=8, rotation=0, ha="right", va="center")
    scale = Normalize(-1, 1) if signed else Normalize(0, 1)
    bar = figure.colorbar(ScalarMappable(scale, SIGNED if signed else AMOUNT), ax=axes, shrink=0.5, aspect=30)
    label_colour_bar(bar, "Relative to the\nlayer's limit")
    return figure


def plot_branches(
    picture: Picture, map1: np.ndarray, map2: np.ndarray, difference: np.ndarray, lam: np.ndarray, title: str
) -> Figure:
    """Plot one row per head of a layer: the image, A1, A2, and A1 - lambda A2.

    A1 and A2 of a head share one colour scale. The scale of their difference is symmetric around 0.

    Args:
        picture: image, and the part of it that the model sees.
        map1, map2, difference: attention of the output to the patches, (H, rows, columns) each.
        lam: lambda of the output, (H,).
        title: title of the figure.
    """
    heads = len(map1)
    figure = padded_figure(9, 2.2 * heads + 0.7)
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(heads, 4, squeeze=False)
    left, top, right, bottom = picture.box
    for head in range(heads):
        peak = max(map1[head].max(), map2[head].max())
        limit = np.abs(difference[head]).max()
        draw_picture(axes[head, 0], picture)
        axes[head, 0].set_ylabel(f"head {head}")
        panels = (
            ("A1", map1[head], AMOUNT, 0, peak),
            ("A2", map2[head], AMOUNT, 0, peak),
            (f"A1 - {lam[head]:.3f} A2", difference[head], SIGNED, -limit, limit),
        )
        for axis, (name, values, colours, low, high) in zip(axes[head, 1:], panels, strict=True):
            hide_ticks(axis)
            shown = axis.imshow(values, extent=(left, right, bottom, top), cmap=colours, vmin=low, vmax=high)
            axis.set_title(name, fontsize=9)
            figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure


def plot_positions(similarity: np.ndarray, grid: tuple[int, int], title: str) -> Figure:
    """Plot the cosine similarity between the position embeddings of all pairs of patches.

    The plot has one tile per patch, at the patch's place in the image. A tile shows the similarity of its patch to
    every patch, as in figure 7 (centre) of `An Image is Worth 16x16 Words` - https://arxiv.org/abs/2010.11929

    Args:
        similarity: cosine similarities, (N, N), from -1 to 1.
        grid: rows and columns of patches; N is their product.
        title: title of the figure.
    """
    rows, columns = grid
    tiles = similarity.reshape(rows, columns, rows, columns)  # (row, column) of the tile, then within the tile
    # NaN draws nothing, which leaves a white line of one pixel between the tiles.
    spaced = np.pad(tiles, [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=np.nan)
    picture = spaced.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]
    height = min(6 * picture.shape[0] / picture.shape[1], 12)
    figure = Figure(figsize=(7.5, height + 1.2), layout="compressed")
    axis = figure.subplots()
    shown = axis.imshow(picture, cmap=SIGNED, vmin=-1, vmax=1)
    axis.set_xticks((np.arange(columns) + 0.5) * (columns + 1) - 1, [str(i) for i in range(columns)], fontsize=7)
    axis.set_yticks((np.arange(rows) + 0.5) * (rows + 1) - 1, [str(i) for i in range(rows)], fontsize=7)
    axis.set_xlabel("Column of the patch")
    axis.set_ylabel("Row of the patch")
    figure.colorbar(shown, ax=axis, shrink=0.8).set_label("Cosine similarity")
    axis.set_title(title)
    return figure
