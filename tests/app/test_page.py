"""The reactions of the page to its user, without a browser."""

import asyncio
import types

import pytest

from diffvit_timm.app.session import Session

pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'diffvit_timm[app]'")

from diffvit_timm.app import page as pages  # below the skip: it imports Gradio


@pytest.fixture
def session(networks):
    return Session([networks["first"], networks["second"]])


@pytest.fixture
def handlers(session, tmp_path):
    return pages._Handlers(session, tmp_path)


def visible(component):
    """Whether an update shows a component."""
    return component.visible


def test_an_image_fills_the_page(handlers, photo):
    file, path, message, body, picture, predictions, maps, table, point, files = handlers.open(
        str(photo), 1, pages.MEAN
    )
    assert (file, path) == (None, str(photo))  # another file can follow
    assert message == '<p class="message">photo.png. Query of the maps: the class token.</p>'
    assert 'class="photo"' in picture
    assert maps.count("<h3>") == predictions.count("<h3>") == 2
    assert "Layer 1, mean over the heads" in maps
    assert "negative" in table
    assert point is None
    assert (visible(body), visible(files)) == (True, False)


def test_a_bad_file_is_a_message_and_hides_the_image_before_it(handlers, photo):
    photo.write_text("no image")
    file, path, message, body, *texts, point, files = handlers.open(str(photo), 1, pages.MEAN)
    assert (file, path) == (None, None)
    assert message == (
        '<p class="message error">This image cannot be shown: photo.png does not decode (no format that Pillow reads): '
        "fix it or leave it out.</p>"
    )
    assert texts == [""] * 4
    assert point is None
    assert (visible(body), visible(files)) == (False, False)


def test_without_an_image_nothing_happens(handlers):
    assert handlers.choose(None, 1, pages.MEAN, types.SimpleNamespace(x=0.5, y=0.5))[0] is None
    assert "Choose an image." in handlers.reset(None, 1, pages.MEAN)[1]
    assert "choose an image first" in handlers.write(None, None, 1, pages.MEAN)[0]
    assert len(handlers.show(None, None, 1, pages.MEAN)) == 4


def test_a_click_shows_the_patch_and_the_button_shows_the_output_again(handlers, photo):
    click = types.SimpleNamespace(x=0.62, y=0.55)
    point, message, maps, _ = handlers.choose(str(photo), 0, "head 1", click)
    assert point == (0.62, 0.55)
    assert message == '<p class="message">photo.png. Query of the maps: the patch in row 3, column 3.</p>'
    assert (
        "Layer 0, head 1. Query: the patch in row 4, column 5." in maps
    )  # of the second network, whose patches differ
    point, message, picture, maps, _ = handlers.reset(str(photo), 0, "head 1")
    assert point is None
    assert picture != handlers.reset(str(photo), 0, "head 1")[2]  # so that the page draws it again, without the mark
    assert "Layer 0, head 1. Query: the class token." in maps


def test_a_click_that_is_no_number_is_ignored(handlers, photo):
    assert handlers.choose(str(photo), 0, pages.MEAN, types.SimpleNamespace(x=float("nan"), y=0.5))[0] is None


def test_another_layer_keeps_the_patch(handlers, photo):
    message, maps, table, _ = handlers.show(str(photo), (0.62, 0.55), 0, "head 1")
    assert "the patch in row 3, column 3, layer 0, head 1." in message
    assert "Layer 0, head 1" in maps
    assert '<tr class="chosen" aria-current="true"><th scope="row">0</th>' in table


def test_the_files_are_offered(handlers, photo, tmp_path):
    message, files = handlers.write(str(photo), None, 1, pages.MEAN)
    assert "below" in message
    assert visible(files)
    assert {path.name for path in tmp_path.glob("photo-layer-1-mean.*")} == {
        "photo-layer-1-mean.png", "photo-layer-1-mean.npz"
    }  # fmt: skip


def test_the_page_has_every_layer_and_head_of_both_networks(session, tmp_path):
    async def build():  # outside of a running event loop, Gradio makes loops that it does not close
        return pages.explorer_page(session, tmp_path)

    page = asyncio.run(build())
    blocks = {block.elem_id: block for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert (blocks["layer"].minimum, blocks["layer"].maximum) == (0, 2)
    assert [value for _, value in blocks["head"].choices] == [pages.MEAN, *(f"head {i}" for i in range(4))]
    assert blocks["output"].value == "Query: the class token"
    assert page.analytics_enabled is False
