"""Maps without the image under them: attention of every head, the two branches of a layer, position embeddings."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, FigureBase

from ..colours import AMOUNT, SIGNED
from .picture import Picture, draw_picture, hide_ticks, label_colour_bar, padded_figure

__all__ = ["HeadMaps", "plot_all_heads", "plot_branches", "plot_heads", "plot_positions"]

MOST_TICKS = 32  # numbers along an axis, which would overlap


class HeadMaps(NamedTuple):
    """The attention of the output to the patches in all heads of a model.

    Attributes:
        maps: attention in each layer, (H, rows, columns). Layers may have different shapes.
        signed: whether the maps have a sign.
        label: lines above the maps.
    """

    maps: Sequence[np.ndarray]
    signed: bool
    label: str


def plot_heads(maps: Sequence[np.ndarray], title: str, signed: bool) -> Figure:
    """Plot the attention of the output to the patches, with one row per layer and one column per head.

    The panels of a row share one colour scale, whose limits are written at its left.

    Args:
        maps: attention to the patches in each layer, (H, rows, columns). Layers may have different shapes.
        title: title of the figure.
        signed: whether the maps have a sign. If so, the scale is symmetric around 0; otherwise it starts at 0.
    """
    figure = padded_figure(*_size_of_heads(maps), compress=True)
    figure.suptitle(title, wrap=True)
    _draw_heads(figure, maps, signed)
    return figure


def plot_all_heads(models: Sequence[HeadMaps], title: str) -> Figure:
    """Plot the maps of several models side by side, each as `plot_heads` does.

    All models have the same colours: those of signed maps, if there are any.

    Args:
        models: maps of each model.
        title: title of the figure.
    """
    sizes = [_size_of_heads(model.maps) for model in models]
    widths = [width for width, _ in sizes]
    lines = [_label_lines(model.label, width) for model, width in zip(models, widths, strict=True)]
    height = max(height for _, height in sizes) + 0.18 * max(map(len, lines)) + 0.3
    figure = padded_figure(sum(widths), height)
    figure.suptitle(title, wrap=True)
    parts = figure.subfigures(1, len(models), width_ratios=widths, squeeze=False)[0]
    for part, model, label in zip(parts, models, lines, strict=True):
        part.suptitle("\n".join(label), fontsize=10)
        _draw_heads(part, model.maps, any(other.signed for other in models))
    return figure


def _size_of_heads(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the width and the height of a plot of heads, in inches."""
    return max(1.08 * max(map(len, maps)) + 2.2, 5.5), 0.92 * len(maps) + 1.2  # the title needs 5.5


def _label_lines(label: str, width: float) -> list[str]:
    """Break the lines of a label of 10 points to a width in inches."""
    return [part for line in label.splitlines() for part in textwrap.wrap(line, int(12 * width))]


def _draw_heads(figure: FigureBase, maps: Sequence[np.ndarray], signed: bool) -> None:
    """Draw one row of panels per layer, and the colour bar."""
    layers, heads = len(maps), max(map(len, maps))
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
    for count, set_ticks in ((columns, axis.set_xticks), (rows, axis.set_yticks)):
        numbered = np.arange(0, count, -(-count // MOST_TICKS))
        set_ticks((numbered + 0.5) * (count + 1) - 1, list(map(str, numbered)), fontsize=7)
    axis.set_xlabel("Column of the patch")
    axis.set_ylabel("Row of the patch")
    figure.colorbar(shown, ax=axis, shrink=0.8).set_label("Cosine similarity")
    axis.set_title(title)
    return figure
