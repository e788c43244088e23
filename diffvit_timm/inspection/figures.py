"""Pictures of what attention does. Numbers in, a matplotlib figure out; `save` writes the numbers beside it."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.stats import t

from .colours import AMOUNT, LINES, SIGNED
from .head_statistics import HeadStatistics
from .overlay import Box
from .perturbation import Curve, area_under

__all__ = [
    "Picture",
    "plot_branches",
    "plot_faithfulness",
    "plot_heads",
    "plot_lambdas",
    "plot_overlays",
    "plot_positions",
    "plot_statistics",
    "save",
]


class Picture(NamedTuple):
    """An image as it was before the model's transform, and the part of it that the model sees."""

    image: Image.Image
    box: Box
    name: str


def save(figure: Figure, path: Path, **numbers: Any) -> None:
    """Write the PNG, and an npz of the same name with the numbers that it shows."""
    figure.savefig(path, dpi=120)
    np.savez_compressed(path.with_suffix(".npz"), **numbers)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])


def _in_lines(name: str) -> str:
    """The name of a panel, no wider than it."""
    return "\n".join(textwrap.fill(line, 30) for line in name.splitlines())


def _roomy(width: float, height: float) -> Figure:
    """A figure with room at its edges, which labels beside square panels need."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12))


def _draw_picture(axis: Axes, picture: Picture) -> None:
    _bare(axis)
    axis.imshow(picture.image, cmap="gray" if picture.image.mode == "L" else None)
    left, top, right, bottom = picture.box
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="white", lw=1.5)
    axis.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="black", lw=0.8)
    axis.set_xlim(0, picture.image.width)
    axis.set_ylim(picture.image.height, 0)


def _draw_heat(axis: Axes, picture: Picture, heat: np.ndarray) -> None:
    """Heat on the part of the picture that the model saw, from 0 to its own maximum, which is said below."""
    _draw_picture(axis, picture)
    left, top, right, bottom = picture.box
    peak = heat.max()
    axis.imshow(
        heat, extent=(left, right, bottom, top), cmap=AMOUNT, vmin=0, vmax=peak if peak > 0 else 1, alpha=0.65,
        interpolation="nearest",
    )  # fmt: skip
    axis.set_xlim(0, picture.image.width)
    axis.set_ylim(picture.image.height, 0)
    axis.set_xlabel(f"max {peak / heat.mean():.1f} x mean" if heat.mean() > 0 else "nothing", fontsize=8)


def plot_overlays(
    pictures: Sequence[Picture],
    columns: Mapping[str, np.ndarray],
    title: str,
    width: int = 0,
    seen: Mapping[str, Sequence[Picture]] | None = None,
) -> Figure:
    """A row a picture: itself, and each heat map over it, from 0 to its own maximum.

    Args:
        pictures: with the part that the model sees, which is framed.
        columns: of each kind of heat map its name, and (pictures, rows, columns), not negative.
        title: what is shown, of which model.
        width: panels a line, for many kinds of one picture; 0: all on one line.
        seen: of a column the pictures as its model sees them, where that is not the model of `pictures`.
    """
    names = list(columns)
    width = width or len(names) + 1
    lines = -(-(len(names) + 1) // width)
    shape = (len(pictures) * lines, width)
    figure = Figure(figsize=(1.9 * width + 0.9, 2.15 * shape[0] + 0.7), layout="constrained")
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(*shape, squeeze=False)
    for row, picture in enumerate(pictures):
        panels = axes[row * lines : (row + 1) * lines].ravel()
        _draw_picture(panels[0], picture)
        panels[0].set_title(_in_lines(picture.name), fontsize=8)
        for axis, name in zip(panels[1:], names, strict=False):
            _draw_heat(axis, (seen or {}).get(name, pictures)[row], columns[name][row])
            axis.set_title(_in_lines(name), fontsize=8)
        for axis in panels[len(names) + 1 :]:
            axis.set_axis_off()
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), AMOUNT), ax=axes, shrink=0.6, aspect=30)
    bar.set_label("share of the panel's maximum")
    return figure


def plot_heads(maps: np.ndarray, title: str, signed: bool) -> Figure:
    """A row a layer, a column a head: where what the model's head reads looks. A row has one scale, which it names.

    Args:
        maps: (L, H, rows, columns).
        title: what is shown, of which model.
        signed: differences, on a scale around 0; or else amounts, from 0 on.
    """
    layers, heads = maps.shape[:2]
    figure = _roomy(max(0.95 * heads + 2.6, 5.5), 1.0 * layers + 1.2)  # room for the title
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        limit = np.abs(maps[layer]).max() or 1.0
        for head in range(heads):
            axis = axes[layer, head]
            _bare(axis)
            low = -limit if signed else 0
            axis.imshow(maps[layer, head], cmap=SIGNED if signed else AMOUNT, vmin=low, vmax=limit)
            if layer == 0:
                axis.set_title(f"head {head}", fontsize=8)
        sign = "±" if signed else "0 to "
        axes[layer, 0].set_ylabel(f"layer {layer}\n{sign}{limit:.2g}", fontsize=8, rotation=0, ha="right", va="center")
    scale = Normalize(-1, 1) if signed else Normalize(0, 1)
    bar = figure.colorbar(ScalarMappable(scale, SIGNED if signed else AMOUNT), ax=axes, shrink=0.5, aspect=30)
    bar.set_label("share of the layer's scale")
    return figure


def plot_branches(
    picture: Picture, map1: np.ndarray, map2: np.ndarray, difference: np.ndarray, lam: np.ndarray, title: str
) -> Figure:
    """A row a head: the picture, A1, A2, and A1 - lambda A2 around 0; A1 and A2 of a head have one scale.

    Args:
        picture: with the part that the model sees.
        map1, map2, difference: (H, rows, columns), where what the model's head reads looks.
        lam: (H,), of what is read.
        title: which layer of which model.
    """
    heads = len(map1)
    figure = _roomy(9, 2.2 * heads + 0.7)
    figure.suptitle(title, wrap=True)
    axes = figure.subplots(heads, 4, squeeze=False)
    left, top, right, bottom = picture.box
    for head in range(heads):
        peak = max(map1[head].max(), map2[head].max())
        limit = np.abs(difference[head]).max()
        _draw_picture(axes[head, 0], picture)
        axes[head, 0].set_ylabel(f"head {head}")
        panels = (
            ("A1", map1[head], AMOUNT, 0, peak),
            ("A2", map2[head], AMOUNT, 0, peak),
            (f"A1 - {lam[head]:.3f} A2", difference[head], SIGNED, -limit, limit),
        )
        for axis, (name, values, colours, low, high) in zip(axes[head, 1:], panels, strict=True):
            _bare(axis)
            shown = axis.imshow(values, extent=(left, right, bottom, top), cmap=colours, vmin=low, vmax=high)
            axis.set_title(name, fontsize=9)
            figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure


def plot_lambdas(models: Mapping[str, np.ndarray], title: str) -> Figure:
    """Lambda over the layers, a line a model.

    Args:
        models: of each model (L,), or (L, n) of several heads or tokens: their mean, and their standard deviation as a
            band.
        title: what is shown.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for colour, (name, lam) in zip(itertools.cycle(LINES), models.items(), strict=False):
        lam = lam.reshape(len(lam), -1)
        mean, deviation = lam.mean(axis=1), lam.std(axis=1)
        axis.plot(mean, "o-", color=colour, label=name, ms=4)
        if lam.shape[1] > 1:
            axis.fill_between(range(len(lam)), mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)
    axis.axhline(0, color="black", lw=0.6)
    axis.set_xlabel("Layer")
    axis.set_ylabel("lambda")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
    axis.set_title(title)
    return figure


def plot_positions(similarity: np.ndarray, grid: tuple[int, int], title: str) -> Figure:
    """Of every patch, at its place, the cosine similarity of its position embedding to all others'.

    Args:
        similarity: (N, N), from -1 to 1.
        grid: rows and columns of patches; N is their product.
        title: which embedding of which model.
    """
    rows, columns = grid
    tiles = similarity.reshape(rows, columns, rows, columns)
    spaced = np.pad(tiles, [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=np.nan)
    picture = spaced.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]
    figure = Figure(figsize=(7.5, 7), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(picture, cmap=SIGNED, vmin=-1, vmax=1, interpolation="nearest")
    axis.set_xticks((np.arange(columns) + 0.5) * (columns + 1) - 1, [str(i) for i in range(columns)], fontsize=7)
    axis.set_yticks((np.arange(rows) + 0.5) * (rows + 1) - 1, [str(i) for i in range(rows)], fontsize=7)
    axis.set_xlabel("Column of the patch")
    axis.set_ylabel("Row of the patch")
    figure.colorbar(shown, ax=axis, shrink=0.8).set_label("cosine similarity")
    axis.set_title(title)
    return figure


def plot_statistics(models: Mapping[str, HeadStatistics], title: str) -> Figure:
    """Entropy, distance and prefix share over the layers: a dot a head, a line through the means of a model.

    Args:
        models: of `head_statistics`.
        title: what is shown, on which images.
    """
    labels = ("Entropy (nats)", "Distance (pixels)", "Share on prefix tokens")
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(title, wrap=True)
    drawn = list(zip(models.items(), itertools.cycle(LINES), strict=False))
    for place, (axis, label) in enumerate(zip(figure.subplots(1, 3), labels, strict=True)):
        for number, ((name, statistics), colour) in enumerate(drawn):
            values = statistics[place].numpy()
            layers = np.arange(len(values)) + 0.12 * (number - (len(models) - 1) / 2)
            axis.scatter(np.repeat(layers, values.shape[1]), values.ravel(), s=10, color=colour, alpha=0.5, lw=0)
            axis.plot(layers, values.mean(axis=1), color=colour, label=name)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("Layer")
        axis.set_title(label, fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if place == 0:
            axis.legend(fontsize=8)
    return figure


def plot_faithfulness(curves: Mapping[Curve, Mapping[str, np.ndarray]], title: str) -> Figure:
    """The class's probability over the share of patches taken away or shown: means over the images, with 95 % bands.

    Args:
        curves: of each kind of curve, and each way to draw heat maps, (images, steps + 1).
        title: of which model, on what.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    figure.suptitle(title, wrap=True)
    notes = {"deletion": "lower is better", "insertion": "higher is better"}
    for axis, (kind, methods) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for colour, (name, curve) in zip(itertools.cycle(LINES), methods.items(), strict=False):
            n, share = len(curve), np.linspace(0, 1, curve.shape[1])
            mean = curve.mean(axis=0)
            half = t.ppf(0.975, n - 1) * curve.std(axis=0, ddof=1) / n**0.5 if n > 1 else np.zeros_like(mean)
            area = area_under(torch.from_numpy(mean)).item()
            axis.plot(share, mean, color=colour, label=f"{name}: area {area:.3f}")
            axis.fill_between(share, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
        axis.set_xlabel(f"Share of patches {'taken away' if kind == 'deletion' else 'shown'}, hottest first")
        axis.set_ylabel("Probability of the class")
        axis.set_title(f"{kind.capitalize()} ({notes[kind]})")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure
