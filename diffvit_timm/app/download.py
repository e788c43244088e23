"""Write what the page shows into files: one picture (PNG) and its numbers (NPZ)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..inspection import figures
from ..inspection.colours import AMOUNT, SIGNED
from ..inspection.figures.picture import Picture, draw_picture, hide_ticks, padded_figure
from .html import query_words
from .view import NetworkView, Patch, Point, QueryMaps

__all__ = ["plot_query", "write_files"]

LABEL = 36  # characters in a line beside the image
PANELS = 6  # the image, A1, A2, their difference, rollout, relevance


def write_files(
    folder: Path, name: str, views: Sequence[NetworkView], point: Point, layer: int, head: int | None
) -> list[Path]:
    """Write the picture of a query and its numbers.

    Args:
        folder: existing folder; files of the same names are replaced.
        name: name of the image.
        views: view of each network on the image.
        point: point of the image whose patch is the query; None for the output.
        layer, head: as in `NetworkView.query_maps`.

    Returns:
        Paths of the PNG and the NPZ file.
    """
    path = folder / f"{name}-layer-{layer}-{'mean' if head is None else f'head-{head}'}.png"
    figures.save(plot_query(name, views, point, layer, head), path, **_numbers(views, point, layer))
    return [path, path.with_suffix(".npz")]


def _numbers(views: Sequence[NetworkView], point: Point, layer: int) -> dict[str, np.ndarray]:
    """Return the maps of a query in all heads of a layer, (H, rows, columns), and the values of the other panels."""
    numbers: dict[str, np.ndarray] = {}
    for view in views:
        patch = view.query_patch(point)
        arrays = {"rollout": view.rollout(patch), "lambda": np.array(view.lambdas),
                  "negative_mass": np.array(view.negative)}  # fmt: skip
        if (relevance := view.relevance()) is not None:
            arrays["relevance"] = relevance
        if patch is not None:
            arrays["query"] = np.array(patch)  # row and column, counted from 0
        if layer < len(view.maps):
            heads = [view.query_maps(patch, layer, head) for head in range(view.network.heads[layer])]
            for field in ("map1", "map2", "difference"):
                if getattr(heads[0], field) is not None:
                    arrays[field] = np.stack([getattr(one, field) for one in heads])
        numbers |= {f"{view.network.name} {key}": array for key, array in arrays.items()}
    return numbers


def plot_query(name: str, views: Sequence[NetworkView], point: Point, layer: int, head: int | None) -> Figure:
    """Plot the maps of a query, with one row per network; the arguments are those of `write_files`."""
    figure = padded_figure(2.3 * PANELS, 2.7 * len(views) + 0.6)
    of = "mean over the heads" if head is None else f"head {head}"
    figure.suptitle(f"Layer {layer}, {of}. Query: {query_words(views[0], point)}. Image: {name}")
    axes = figure.subplots(len(views), PANELS, squeeze=False)
    for row, view in zip(axes, views, strict=True):
        patch = view.query_patch(point)
        _draw_image(row[0], view, name)
        maps = view.query_maps(patch, layer, head) if view.has(layer, head) else None
        for axis, panel in zip(row[1:], [*_map_panels(maps), *_heat_panels(view, patch)], strict=True):
            axis.set_axis_off() if panel is None else _draw_map(axis, view, *panel)
        for axis in row[:-1]:  # the relevance is that of the output, whatever the query
            if axis.axison:
                _mark(axis, view, patch)
    return figure


Panel = tuple[str, np.ndarray, str, float, float]  # title, values, colours, lower and upper end of the colours


def _map_panels(maps: QueryMaps | None) -> list[Panel | None]:
    """Return the panels of A1, A2 and their difference; None for those that the network does not have."""
    if maps is None:
        return [None, None, None]
    if maps.map2 is None or maps.difference is None:
        return [("attention", maps.map1, AMOUNT, 0.0, maps.map1.max()), None, None]
    limit = np.abs(maps.difference).max()
    return [
        ("A1", maps.map1, AMOUNT, 0.0, maps.map1.max()),
        ("A2", maps.map2, AMOUNT, 0.0, maps.map2.max()),
        (f"A1 - {maps.lam:.3f} A2", maps.difference, SIGNED, -limit, limit),
    ]


def _heat_panels(view: NetworkView, patch: Patch) -> list[Panel | None]:
    rolled, relevance = view.rollout(patch), view.relevance()
    return [
        ("rollout", rolled, AMOUNT, 0.0, rolled.max()),
        None if relevance is None else ("relevance for the prediction", relevance, AMOUNT, 0.0, relevance.max()),
    ]


def _draw_image(axis: Axes, view: NetworkView, name: str) -> None:
    """Draw the image with the part that the network sees, and the prediction."""
    draw_picture(axis, Picture(view.image, view.box, name))
    axis.set_ylabel(textwrap.fill(view.network.title, LABEL), fontsize=8)
    prediction = "no head" if not view.network.classes else "{} {:.0%}".format(*view.top_classes(1)[0])
    axis.set_title(prediction, fontsize=8)


def _mark(axis: Axes, view: NetworkView, patch: Patch) -> None:
    """Draw a frame around the patch that is the query."""
    if patch is None:
        return
    left, top, right, bottom = view.box
    width, height = (right - left) / view.grid[1], (bottom - top) / view.grid[0]
    corner = (left + patch[1] * width, top + patch[0] * height)
    for colour, line_width in (("white", 2.5), ("black", 1.0)):  # visible on dark and on bright images
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, lw=line_width))


def _draw_map(
    axis: Axes, view: NetworkView, title: str, values: np.ndarray, colours: str, low: float, high: float
) -> None:
    hide_ticks(axis)
    left, top, right, bottom = view.box
    shown = axis.imshow(values, extent=(left, right, bottom, top), cmap=colours, vmin=low, vmax=high)
    axis.set_title(title, fontsize=9)
    bar = axis.figure.colorbar(shown, ax=axis, location="bottom", shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.ax.locator_params(nbins=3)
