"""The parts of the page as HTML, and the files that the user downloads."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from diffvit_timm.app.download import write_files
from diffvit_timm.app.html import (
    introduction_html,
    layers_html,
    maps_html,
    message_html,
    photo_html,
    predictions_html,
    query_words,
)
from diffvit_timm.app.session import Session


@pytest.fixture
def views(networks, photo):
    return Session([networks["first"], networks["second"]]).views(str(photo))


def titles(text):
    return re.findall(r"<figcaption><span>(.*?)</span>", text)


def test_each_network_has_the_maps_of_its_attention(views):
    first, second = maps_html(views, None, 1, None).split("</section>")[:2]
    assert titles(first)[:2] == ["A1", "A2"]
    assert re.fullmatch(r"A1 - 0\.\d{3} A2", titles(first)[2])
    assert titles(second)[0] == "Attention (plain: one map)"
    assert titles(first)[3:] == titles(second)[1:] == ["Rollout through all layers", titles(first)[-1]]
    assert titles(first)[-1].startswith("Relevance for ")
    assert "Layer 1, mean over the heads. Query: the class token." in first
    assert "Query: the patch in row 4, column 5." in maps_html(views[1:], (0.62, 0.55), 0, 3)


def test_a_network_without_the_layer_or_the_head_says_so_and_keeps_its_other_maps(views):
    first, second = maps_html(views, None, 2, None).split("</section>")[:2]
    assert "This network has no layer 2: its last layer is 1." in first
    assert titles(first)[0] == "Rollout through all layers"
    assert titles(second)[0] == "Attention (plain: one map)"
    assert "Layer 0 of this network has no head 3: its last head is 1." in maps_html(views, None, 0, 3)


def test_a_heat_map_has_one_pixel_per_patch_and_its_largest_value_has_the_last_colour(views):
    text = maps_html(views[:1], (0.5, 0.5), 1, 0)
    values = views[0].query_maps(views[0].patch_at(0.5, 0.5), 1, 0).map1
    png = base64.b64decode(re.search(r'<img src="data:image/png;base64,(.*?)"', text)[1])
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert pixels.shape == (4, 4, 3)
    assert tuple(pixels[np.unravel_index(values.argmax(), values.shape)]) == (253, 231, 37)  # viridis
    assert text.count('class="mark"') == 4  # not in the relevance, which is that of the output


def test_names_of_classes_and_files_cannot_be_html(views):
    assert "<b>owl" not in predictions_html(views) + maps_html(views, None, 0, None)
    assert "&lt;b&gt;owl" in predictions_html(views)
    assert message_html("<i>x") == '<p class="message">&lt;i&gt;x</p>'
    assert message_html("x", is_error=True) == '<p class="message error">x</p>'


def test_the_predictions_are_shares_in_falling_order(views):
    for section in predictions_html(views).split("</section>")[:2]:
        shares = [float(share) for share in re.findall(r"<b>(.*?)%</b>", section)]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(100, abs=0.3)


def test_the_photograph_says_where_the_patches_are(views):
    text = photo_html(views[0], 7)
    left, top, width, height = map(float, re.search(r'data-frame="(.*?)"', text)[1].split())
    assert left + width / 2 == pytest.approx(0.5, abs=0.02)
    assert top + height / 2 == pytest.approx(0.5, abs=0.02)
    assert 'data-grid="4 4"' in text
    assert 'tabindex="0"' in text


def test_the_table_has_lambda_and_negative_mass_of_the_differential_networks(views, networks, photo):
    text = layers_html(views, 1)
    rows = re.findall(r'<tr(?: class="(chosen)" aria-current="true")?><th scope="row">(\d+)</th>(.*?)</tr>', text)
    assert [(chosen, number) for chosen, number, _ in rows] == [("", "0"), ("chosen", "1")]
    assert f"<td>{views[0].lambdas[1]:.3f}</td>" in rows[1][2]
    assert "first" in text
    assert "second" not in text
    assert "neither lambda nor negative mass" in layers_html(views[1:], 0)


def test_a_network_without_a_head_predicts_nothing(networks, photo):
    (view,) = Session([networks["headless"]]).views(str(photo))
    assert "This network has no head" in predictions_html([view])
    assert titles(maps_html([view], None, 0, None))[-1] == "Rollout through all layers"


def test_the_introduction_names_every_network_with_its_attention(networks):
    text = introduction_html([networks["first"], networks["second"]])
    assert "<li>first, differential attention, version 2</li><li>second, plain attention</li>" in text


@pytest.mark.parametrize("point", [None, (0.4, 0.6)])
def test_the_files_are_a_picture_and_the_numbers_of_all_heads(views, tmp_path, point, saved_figures):
    paths = write_files(tmp_path, "photo", views, point, 1, 0)
    assert [path.name for path in paths] == ["photo-layer-1-head-0.png", "photo-layer-1-head-0.npz"]
    with Image.open(paths[0]) as picture:
        assert (picture.format, picture.width > 1000) == ("PNG", True)
    assert query_words(views[0], point) in saved_figures[0].get_suptitle()
    numbers = np.load(paths[1])
    patch = views[0].query_patch(point)
    np.testing.assert_array_equal(numbers["first difference"][1], views[0].query_maps(patch, 1, 1).difference)
    assert numbers["second map1"].shape == (4, 6, 6)
    assert numbers["first lambda"].shape == (2,)
    assert {"first rollout", "first relevance", "first negative_mass", "second rollout"} <= set(numbers)
    assert "second map2" not in numbers
    if point is not None:
        assert tuple(numbers["first query"]) == patch


def test_the_files_of_a_layer_that_one_network_lacks_have_the_maps_of_the_other(views, tmp_path):
    _, path = write_files(tmp_path, "photo", views, None, 2, None)
    numbers = np.load(path)
    assert "second map1" in numbers
    assert "first map1" not in numbers
    assert "first rollout" in numbers
