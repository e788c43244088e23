"""The parts of the page as HTML: the photograph, predictions, maps, and the table of layers."""

import base64
import html
import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from PIL import Image

from ..inspection.colours import AMOUNT, SIGNED
from .network import ExploredNetwork
from .view import NetworkView, Patch, Point, QueryMaps

__all__ = [
    "introduction_html",
    "layers_html",
    "maps_html",
    "message_html",
    "photo_html",
    "predictions_html",
    "query_words",
]

PHOTO_SIDE, PANEL_SIDE = 560, 300  # pixels of the longest side that are sent
SHOWN_SIDE = 420  # pixels of the longest side of the photograph on a wide screen
SHOWN_CLASSES = 5
STOPS = 9  # colours of a colour bar


def message_html(text: str, is_error: bool = False) -> str:
    """Return a message for the user; text is escaped."""
    return f'<p class="message{" error" * is_error}">{html.escape(text)}</p>'


def introduction_html(networks: Sequence[ExploredNetwork]) -> str:
    """Return the heading of the page, which names the networks."""
    names = "".join(f"<li>{html.escape(network.title)}</li>" for network in networks)
    return f"<h1>Where {'these networks look' if len(networks) > 1 else 'this network looks'}</h1><ul>{names}</ul>"


def query_words(view: NetworkView, point: Point) -> str:
    """Return the query of the maps in words."""
    if point is None:
        return view.network.output
    row, column = view.patch_at(*point)
    return f"the patch in row {row + 1}, column {column + 1}"


def photo_html(view: NetworkView, number: int) -> str:
    """Return the photograph with a frame around the patches of a network, in which the user clicks or moves.

    Its script is in style.py. It reads the place of the frame, in shares of the image, and the grid of patches.

    Args:
        view: view of the network on the image.
        number: another one each time: the page draws equal HTML only once, and would keep the mark of the last click.
    """
    width, height = view.image.size
    left, top, right, bottom = view.box
    frame = f"{left / width:.5f} {top / height:.5f} {(right - left) / width:.5f} {(bottom - top) / height:.5f}"
    rows, columns = view.grid
    label = (
        f"The image. Click a patch, or move with the arrow keys, to see its attention: {rows} rows, {columns} columns."
    )
    shown = round(SHOWN_SIDE * width / max(width, height))
    return (
        f'<div class="photo" style="width:{shown}px" tabindex="0" role="application" aria-label="{label}" '
        f'data-frame="{frame}" data-grid="{rows} {columns}" data-number="{number}">'
        f'<img src="{_jpeg(view.image, PHOTO_SIDE)}" alt="" draggable="false">'
        f'<span class="seen" style="{_place(frame)}"></span><span class="mark" hidden></span></div>'
    )


def _place(frame: str) -> str:
    names = ("left", "top", "width", "height")
    return ";".join(f"{name}:{100 * float(part):.3f}%" for name, part in zip(names, frame.split(), strict=True))


def predictions_html(views: Sequence[NetworkView]) -> str:
    """Return the likeliest classes of each network, with bars."""
    parts = []
    for view in views:
        rows = "".join(
            f'<li style="--share:{100 * share:.1f}%"><span>{html.escape(name)}</span><b>{share:.1%}</b></li>'
            for name, share in view.top_classes(SHOWN_CLASSES)
        )
        body = f"<ol>{rows}</ol>" if rows else "<p>This network has no head, so it predicts no class.</p>"
        parts.append(f"<section><h3>{html.escape(view.network.name)}</h3>{body}</section>")
    return f'<div class="predictions">{"".join(parts)}</div>'


def maps_html(views: Sequence[NetworkView], point: Point, layer: int, head: int | None) -> str:
    """Return the maps of all networks for one query.

    Args:
        views: view of each network on the image.
        point: point of the image whose patch is the query, as in `NetworkView.patch_at`; None for the output.
        layer, head: as in `NetworkView.query_maps`. A network without them gets a sentence in the place of its maps.
    """
    return "".join(_network_html(view, point, layer, head) for view in views)


def _network_html(view: NetworkView, point: Point, layer: int, head: int | None) -> str:
    patch = view.query_patch(point)
    heading = f"<h3>{html.escape(view.network.title)}</h3>"
    panels = []
    note = _missing(view, layer, head)
    if not note:
        maps = view.query_maps(patch, layer, head)
        of = "mean over the heads" if head is None else f"head {head}"
        note = (
            f"Layer {layer}, {of}. Query: {query_words(view, point)}. {maps.off_patches:.0%} of its attention goes to "
            "tokens that are not patches."
        )
        panels += _map_panels(view, maps, patch)
    panels.append(_panel(view, "Rollout through all layers", view.rollout(patch), patch))
    relevance = view.relevance()
    if relevance is not None:
        panels.append(_panel(view, f"Relevance for {view.top_classes(1)[0][0]}", relevance, None))
    left, top, right, bottom = map(round, view.box)
    photo = _jpeg(view.image.crop((left, top, max(right, left + 1), max(bottom, top + 1))), PANEL_SIDE)
    ratio = (view.box.right - view.box.left) / (view.box.bottom - view.box.top)
    style = f"--photo:url({photo});--ratio:{ratio:.4f}"
    figures = f'<div class="panels" style="{style}">{"".join(panels)}</div>'
    return f"<section>{heading}<p>{html.escape(note)}</p>{figures}</section>"


def _missing(view: NetworkView, layer: int, head: int | None) -> str:
    """Return why a network has no maps of a layer and a head; nothing if it has."""
    layers = len(view.maps)
    if layer >= layers:
        return f"This network has no layer {layer}: its last layer is {layers - 1}."
    if not view.has(layer, head):
        return f"Layer {layer} of this network has no head {head}: its last head is {view.network.heads[layer] - 1}."
    return ""


def _map_panels(view: NetworkView, maps: QueryMaps, patch: Patch) -> list[str]:
    if maps.map2 is None or maps.difference is None:
        return [_panel(view, "Attention (plain: one map)", maps.map1, patch)]
    return [
        _panel(view, "A1", maps.map1, patch),
        _panel(view, "A2", maps.map2, patch),  # on its own scale: A2 is often nearly uniform, and far below A1
        _panel(view, f"A1 - {maps.lam:.3f} A2", maps.difference, patch, signed=True),
    ]


def _panel(view: NetworkView, title: str, values: np.ndarray, patch: Patch, signed: bool = False) -> str:
    """Return one heat map over the part of the image that the network sees, with its colour bar.

    Args:
        view: view of the network.
        title: name of the map.
        values: heat map, (rows, columns).
        patch: patch to frame; None for no frame.
        signed: whether the colours are symmetric around 0; otherwise they range from 0 to the largest value.
    """
    limit = float(np.abs(values).max())
    low = -limit if signed else 0.0
    colours = SIGNED if signed else AMOUNT
    mark = ""
    if patch is not None:
        rows, columns = view.grid
        frame = f"{patch[1] / columns} {patch[0] / rows} {1 / columns} {1 / rows}"
        mark = f'<span class="mark" style="{_place(frame)}"></span>'
    bar = ",".join(_hex(colours, stop / (STOPS - 1)) for stop in range(STOPS))
    alt = html.escape(f"{title}: {values.min():.2g} to {values.max():.2g}")
    return (
        f'<figure><div class="heat"><img src="{_heat_png(values, low, limit, colours)}" alt="{alt}">{mark}</div>'
        f"<figcaption><span>{html.escape(title)}</span>"
        f'<span class="bar"><i>{low:.2g}</i><b style="background:linear-gradient(to right,{bar})"></b>'
        f"<i>{limit:.2g}</i></span></figcaption></figure>"
    )


def layers_html(views: Sequence[NetworkView], layer: int) -> str:
    """Return the table of lambda and negative mass per layer of the differential networks."""
    shown = [view for view in views if not all(map(math.isnan, view.lambdas))]
    if not shown:
        return "<p>Plain attention has one map per head, so there is neither lambda nor negative mass.</p>"
    names = "".join(f'<th colspan="2" scope="colgroup">{html.escape(view.network.name)}</th>' for view in shown)
    kinds = '<th scope="col">lambda</th><th scope="col">negative</th>' * len(shown)
    peaks = [max((value for value in view.negative if value == value), default=0.0) or 1.0 for view in shown]
    rows = []
    for index in range(max(len(view.lambdas) for view in shown)):
        cells = "".join(_layer_cells(view, index, peak) for view, peak in zip(shown, peaks, strict=True))
        chosen = ' class="chosen" aria-current="true"' if index == layer else ""
        rows.append(f'<tr{chosen}><th scope="row">{index}</th>{cells}</tr>')
    return (
        f'<table class="layers"><thead><tr><th rowspan="2" scope="col">layer</th>{names}</tr><tr>{kinds}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        "<p>lambda: mean over heads and tokens. negative: share of the sum of |A1 - lambda A2| that is below zero, on "
        "this image.</p>"
    )


def _layer_cells(view: NetworkView, index: int, peak: float) -> str:
    if index >= len(view.lambdas) or math.isnan(view.lambdas[index]):
        return "<td></td><td></td>"
    share = view.negative[index]
    return f'<td>{view.lambdas[index]:.3f}</td><td style="--share:{100 * share / peak:.1f}%">{share:.1%}</td>'


def _heat_png(values: np.ndarray, low: float, high: float, colours: str) -> str:
    """Encode a heat map as a PNG with one pixel per patch."""
    scaled = Normalize(low, high if high > low else low + 1)(values)
    pixels = (matplotlib.colormaps[colours](scaled)[..., :3] * 255).round().astype(np.uint8)
    return _data_url(Image.fromarray(pixels), "png")


def _hex(colours: str, place: float) -> str:
    return str(matplotlib.colors.to_hex(matplotlib.colormaps[colours](place)))


def _jpeg(image: Image.Image, side: int) -> str:
    """Encode an image as a JPEG whose longest side has at most so many pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return _data_url(small, "jpeg")


def _data_url(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 88} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
