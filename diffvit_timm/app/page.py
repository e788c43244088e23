"""The page of the explorer, in Gradio. Its parts are in html.py, its numbers in view.py."""

import itertools
import math
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import InputError
from .download import write_files
from .html import introduction_html, layers_html, maps_html, message_html, photo_html, predictions_html, query_words
from .session import Session
from .style import PHOTO_SCRIPT
from .view import Point

__all__ = ["explorer_page"]

DAY = (86_400, 86_400)  # files are deleted that often and at that age, in seconds
MEAN = "mean over the heads"
FIRST = (
    "Choose an image. Then click a patch of it, or move over it with the arrow keys: the maps show what it attends to."
)
LIVE = '<div role="status" aria-live="polite">${value}</div>'  # a screen reader reads each new message


def explorer_page(session: Session, folder: Path) -> gr.Blocks:
    """Build the page.

    Args:
        session: images and networks that it shows.
        folder: folder for the files that the user downloads.
    """
    networks = session.networks
    depths = [len(network.heads) for network in networks]
    heads = [MEAN, *(f"head {i}" for i in range(max(max(network.heads) for network in networks)))]
    with gr.Blocks(title="diffvit explore", analytics_enabled=False, delete_cache=DAY, fill_width=True) as page:
        gr.HTML(introduction_html(networks), elem_classes="explorer")
        file = gr.File(label="Image", height=130, elem_id="file")  # emptied at once, so that another image can follow
        message = gr.HTML(message_html(FIRST), html_template=LIVE, elem_id="message", elem_classes="explorer")
        with gr.Column(visible=False) as body:
            with gr.Row():
                with gr.Column(min_width=300):
                    photo = gr.HTML("", js_on_load=PHOTO_SCRIPT, elem_id="photo", elem_classes="explorer")
                    output = gr.Button(f"Query: {networks[0].output}", size="md", elem_id="output")
                with gr.Column(min_width=300):
                    layer = gr.Slider(0, max(depths) - 1, value=min(depths) - 1, step=1, label="Layer", elem_id="layer")
                    head = gr.Dropdown(heads, value=MEAN, label="Head", elem_id="head")
                    predictions = gr.HTML("", elem_id="predictions", elem_classes="explorer")
            maps = gr.HTML("", elem_id="maps", elem_classes="explorer")
            table = gr.HTML("", elem_id="layers", elem_classes="explorer")
            make = gr.Button("Make files: picture (PNG) and numbers (NPZ)", size="md", elem_id="make")
            files = gr.File(label="Files to download", visible=False, interactive=False, elem_id="files")
        path, point = gr.State(None), gr.State(None)  # the image, and the query

        handlers = _Handlers(session, folder)
        query = [path, point, layer, head]
        shared: Any = dict(api_visibility="private", trigger_mode="always_last")
        quiet: Any = dict(shared, show_progress="hidden")  # a click is answered before a progress bar is seen
        opened = [file, path, message, body, photo, predictions, maps, table, point, files]
        file.upload(handlers.open, [file, layer, head], opened, show_progress_on=file, **shared)
        photo.select(handlers.choose, [path, layer, head], [point, message, maps, files], **quiet)
        output.click(handlers.reset, [path, layer, head], [point, message, photo, maps, files], **quiet)
        gr.on([layer.change, head.change], handlers.show, query, [message, maps, table, files], **quiet)
        make.click(handlers.write, query, [message, files], show_progress_on=make, **shared)
    return page


class _Handlers:
    """The reactions of the page to its user. Each method returns the new values of components.

    Args:
        session, folder: as in `explorer_page`.
    """

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        self.folder = folder
        self.numbers = itertools.count()  # of the photographs

    def open(self, path: str, layer: int, head: str) -> tuple:
        """Show an image, or only a message if the file cannot be shown."""
        try:
            views = self.session.views(path)
        except InputError as error:
            hidden = gr.Column(visible=False), "", "", "", "", None, _no_files()
            return None, None, message_html(f"This image cannot be shown: {error}.", is_error=True), *hidden
        return (
            None, path, self._message(path, None), gr.Column(visible=True), photo_html(views[0], next(self.numbers)),
            predictions_html(views), maps_html(views, None, layer, _head(head)), layers_html(views, layer), None,
            _no_files(),
        )  # fmt: skip

    def choose(self, path: str | None, layer: int, head: str, event: gr.EventData) -> tuple:
        """Show the attention of the patch that was clicked."""
        point = (float(event.x), float(event.y))
        if path is None or not all(map(math.isfinite, point)):
            return None, gr.skip(), gr.skip(), _no_files()
        maps = maps_html(self.session.views(path), point, layer, _head(head))
        return point, self._message(path, point), maps, _no_files()

    def reset(self, path: str | None, layer: int, head: str) -> tuple:
        """Show the attention of the output."""
        if path is None:
            return None, message_html(FIRST), "", "", _no_files()
        views = self.session.views(path)
        maps = maps_html(views, None, layer, _head(head))
        return None, self._message(path, None), photo_html(views[0], next(self.numbers)), maps, _no_files()

    def show(self, path: str | None, point: Point, layer: int, head: str) -> tuple:
        """Show another layer or head."""
        if path is None:
            return gr.skip(), gr.skip(), gr.skip(), _no_files()
        views = self.session.views(path)
        maps = maps_html(views, point, layer, _head(head))
        return self._message(path, point, f", layer {layer}, {head}"), maps, layers_html(views, layer), _no_files()

    def write(self, path: str | None, point: Point, layer: int, head: str) -> tuple:
        """Write the picture and the numbers."""
        if path is None:
            return message_html("There is nothing to write yet: choose an image first.", is_error=True), _no_files()
        paths = write_files(self.folder, Path(path).stem, self.session.views(path), point, layer, _head(head))
        return message_html("The files are below."), gr.File(
            [str(one) for one in paths], visible=True, interactive=False
        )

    def _message(self, path: str, point: Point, more: str = "") -> str:
        words = query_words(self.session.views(path)[0], point)
        return message_html(f"{Path(path).name}. Query of the maps: {words}{more}.")


def _no_files() -> gr.File:
    """Return the list of files without those of an earlier query."""
    return gr.File(None, visible=False)


def _head(choice: str) -> int | None:
    return None if choice == MEAN else int(choice.removeprefix("head "))
