"""One image through one network: the rows that a click selects are those of the captured maps."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from diffvit_timm import capture_attention
from diffvit_timm.app import session as sessions
from diffvit_timm.app.network import load_networks
from diffvit_timm.app.session import Session
from diffvit_timm.app.view import look
from diffvit_timm.errors import InputError
from diffvit_timm.inspection.rollout import heat_maps, rollout
from diffvit_timm.inspection.statistics import layer_statistics
from diffvit_timm.models.pretrained import save_pretrained


@pytest.fixture(params=["first", "second", "headless"])
def view(request, networks, photo):
    return look(networks[request.param], Image.open(photo))


def captured_again(view):
    pixels = view.network.transform(view.image)[None]
    with capture_attention(view.network.model) as captured, torch.no_grad():
        logits = view.network.model(pixels)
    return captured, logits, pixels


def test_the_maps_of_a_patch_are_its_row_of_the_captured_maps(view):
    captured, _, _ = captured_again(view)
    row, column = 1, 0
    token = captured.num_prefix_tokens + row * view.grid[1] + column
    for layer, one in enumerate(captured):
        maps = one.maps()
        for head in (None, 1):
            found = view.query_maps((row, column), layer, head)
            for name in ("map1", "map2", "difference"):
                matrix = getattr(maps, name) if maps.map2 is not None or name == "map1" else None
                if matrix is None:
                    assert getattr(found, name) is None
                    continue
                rows = captured.on_patches(matrix[0, :, token])  # (H, rows, columns)
                expected = rows.mean(dim=0) if head is None else rows[head]
                np.testing.assert_allclose(getattr(found, name), expected, atol=1e-6)


def test_the_difference_of_a_head_is_a1_minus_lambda_times_a2(view):
    if view.network.title.endswith("plain attention"):
        assert view.query_maps(None, 0, 0).lam is None
        return
    for patch in (None, (0, 1)):
        maps = view.query_maps(patch, 1, 1)
        np.testing.assert_allclose(maps.difference, maps.map1 - maps.lam * maps.map2, atol=1e-6)
        assert 0 < maps.off_patches < 1


def test_the_output_has_the_maps_rollout_and_relevance_that_the_library_computes(view):
    captured, logits, pixels = captured_again(view)
    expected = captured.on_patches(captured.output_rows(captured[-1].maps().difference))[0].mean(dim=0)
    found = view.query_maps(None, len(view.maps) - 1, None)
    shown = found.map1 if found.difference is None else found.difference
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    flow = captured.on_patches(captured.output_rows(rollout(captured)))[0]
    np.testing.assert_allclose(view.rollout(None), flow, atol=1e-6)
    if view.network.classes:
        np.testing.assert_allclose(view.relevance(), heat_maps(view.network.model, pixels).relevance[0], atol=1e-6)
        (name, share), *_ = view.top_classes(5)
        assert name == view.network.classes[logits[0].argmax()]
        assert share == pytest.approx(logits[0].softmax(-1).max().item())
        assert len(view.top_classes(5)) == 3
    else:
        assert view.relevance() is None
        assert view.top_classes(5) == []


def test_lambda_and_negative_mass_are_those_of_the_statistics(view):
    _, _, pixels = captured_again(view)
    expected = layer_statistics(view.network.model, pixels)
    if not expected.lambdas:
        assert all(map(math.isnan, view.lambdas + view.negative))
        assert len(view.lambdas) == len(view.maps)
    else:
        assert view.lambdas == pytest.approx(expected.lambdas, abs=1e-6)
        assert view.negative == pytest.approx(expected.negative_mass, abs=1e-6)


def test_a_point_is_in_the_patch_of_each_network_and_outside_the_nearest_one_counts(networks, photo):
    first, second = (look(networks[name], Image.open(photo)) for name in ("first", "second"))
    assert (first.grid, second.grid) == ((4, 4), (6, 6))
    left, top, right, bottom = first.box
    for row in range(4):
        for column in range(4):
            x = (left + (column + 0.5) / 4 * (right - left)) / first.image.width
            y = (top + (row + 0.5) / 4 * (bottom - top)) / first.image.height
            assert first.patch_at(x, y) == (row, column)
    assert first.patch_at(0.0, 0.0) == (0, 0)
    assert first.patch_at(1.0, 1.0) == (3, 3)
    assert second.patch_at(0.55, 0.55) == (3, 3)
    assert second.query_patch(None) is None


def test_the_maps_of_an_image_are_computed_once_and_those_of_old_images_are_dropped(networks, photo, monkeypatch):
    calls, real = [], sessions.look
    monkeypatch.setattr(sessions, "look", lambda network, image: (calls.append(network.name), real(network, image))[1])
    session = Session([networks["first"], networks["second"]])
    assert session.views(str(photo)) is session.views(str(photo))
    assert calls == ["first", "second"]
    others = [photo.with_name(f"{i}.png") for i in range(sessions.KEPT)]
    for path in others:
        path.write_bytes(photo.read_bytes())
        session.views(str(path))
    assert len(session._views) == sessions.KEPT
    assert str(photo) not in session._views
    assert session.views(str(photo))[1].network is networks["second"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "photo.png does not decode (no format that Pillow reads): fix it or leave it out"),
        (b"", "photo.png is empty: leave it out"),
        ((1, 4000), "photo.png does not decode (it has 4000 x 1 pixels; the longer side may be at most 1000 times"),
    ],
    ids=["text", "empty", "too long"],
)
def test_a_bad_file_is_one_sentence_without_the_folder_of_the_page(networks, photo, content, message):
    if isinstance(content, bytes):
        photo.write_bytes(content)
    else:
        Image.new("RGB", content[::-1]).save(photo)
    with pytest.raises(InputError) as caught:
        Session([networks["first"]]).views(str(photo))
    assert str(caught.value).startswith(message)
    assert str(photo.parent) not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_an_image_of_one_row_or_column_is_refused(networks, size):
    with pytest.raises(InputError, match=rf"^the image has {size[0]} x {size[1]} pixels, which are too few"):
        look(networks["first"], Image.new("RGB", size))


def test_an_image_of_which_nothing_is_left_is_named(networks):
    network = dataclasses.replace(networks["first"], transform=create_transform((3, 32, 32), crop_mode="border"))
    with pytest.raises(InputError, match=r"^the image is too long and narrow for first: "):
        look(network, Image.new("RGB", (1, 900)))


def test_a_network_that_attends_within_windows_is_refused_by_its_parameter(tmp_path):
    import timm

    save_pretrained(timm.create_model("swin_tiny_patch4_window7_224", depths=(1,), num_heads=(3,)), tmp_path / "swin")
    with pytest.raises(InputError, match=r"^`models=.*swin`: layers.0.blocks.0.attn .* attends within windows"):
        load_networks([str(tmp_path / "swin")])


def test_a_network_is_loaded_at_another_size(folders, photo):
    (network,) = load_networks([folders["first"]], img_size=(16, 48))
    assert look(network, Image.open(photo)).grid == (2, 6)
    assert network.heads == [2, 2]
    assert network.output == "the class token"
