"""Figures show the numbers that they are given, and save them beside the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffvit_timm.inspection import figures
from diffvit_timm.inspection.overlay import Box
from diffvit_timm.inspection.statistics import HeadStatistics

rng = np.random.default_rng(0)


@pytest.fixture
def picture():
    return figures.Picture(Image.new("RGB", (60, 40), "tan"), Box(10, 5, 50, 35), "cat")


def test_an_overlay_covers_the_part_that_the_model_saw_and_ranges_from_zero_to_its_maximum(picture):
    heat = rng.random((2, 3, 4))
    figure = figures.plot_overlays([picture, picture], {"rollout": heat, "last": 2 * heat}, "title")
    panels = [axis for axis in figure.axes if len(axis.images) == 2]
    assert len(panels) == 4
    for axis, values in zip(panels, (heat[0], 2 * heat[0], heat[1], 2 * heat[1]), strict=True):
        shown = axis.images[1]
        np.testing.assert_array_equal(shown.get_array(), values)
        assert shown.get_extent() == [10, 50, 35, 5]
        assert shown.get_clim() == (0, values.max())
        assert axis.get_xlim() == (0, 60)
        assert axis.get_ylim() == (40, 0)


def test_a_column_of_another_model_frames_what_that_model_saw(picture):
    own = picture._replace(box=Box(0, 0, 60, 40))
    heat = rng.random((1, 3, 4))
    figure = figures.plot_overlays([picture], {"one": heat, "other": heat}, "title", seen={"other": [own]})
    extents = [axis.images[1].get_extent() for axis in figure.axes if len(axis.images) == 2]
    assert extents == [[10, 50, 35, 5], [0, 60, 40, 0]]


def test_titles_stay_within_the_figure(picture):
    name = "a-run-folder-with-a-long-name-20261122-091500"
    title = f"Where the class token looks: A1 - lambda A2\n{name}, IMG_20260814_183355: Staffordshire bull terrier 93%"
    for figure in (
        figures.plot_heads(rng.random((2, 2, 4, 4)), title, signed=True),
        figures.plot_overlays([picture._replace(name=name)], {name: rng.random((1, 2, 2))}, title),
    ):
        figure.draw_without_rendering()
        texts = [figure._suptitle, *(axis.title for axis in figure.axes)]
        for box in (text.get_window_extent() for text in texts if text.get_text()):
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_many_kinds_of_heat_maps_break_into_lines(picture):
    kinds = {f"layer {i}": rng.random((1, 2, 2)) for i in range(6)}
    figure = figures.plot_overlays([picture], kinds, "title", width=3)
    assert [axis.get_title() for axis in figure.axes[:7]] == ["cat", *kinds]
    assert not figure.axes[7].axison  # the rest of the last line is empty


def test_a_heat_map_of_zeros_can_be_drawn(picture):
    figure = figures.plot_overlays([picture], {"none": np.zeros((1, 2, 2))}, "title")
    assert figure.axes[1].get_xlabel() == "zero everywhere"


@pytest.mark.parametrize(("signed", "low"), [(True, -1), (False, 0)])
def test_heads_share_one_scale_per_layer_which_is_symmetric_for_signed_maps(signed, low):
    maps = rng.standard_normal((3, 2, 4, 4)) * np.array([1, 10, 100])[:, None, None, None]
    figure = figures.plot_heads(maps, "title", signed)
    shown = [axis.images[0] for axis in figure.axes[:6]]
    for image, values, limit in zip(
        shown, maps.reshape(6, 4, 4), np.repeat(np.abs(maps).max((1, 2, 3)), 2), strict=True
    ):
        np.testing.assert_array_equal(image.get_array(), values)
        assert image.get_clim() == (low * limit, limit)


def test_the_heads_of_several_models_stand_side_by_side_in_the_same_colours():
    signed, positive = rng.standard_normal((2, 2, 4, 4)), rng.random((3, 2, 4, 4))
    models = [figures.HeadMaps(signed, True, "one, diff"), figures.HeadMaps(positive, False, "two, plain")]
    figure = figures.plot_all_heads(models, "title")
    assert [part.get_suptitle() for part in figure.subfigs] == ["one, diff", "two, plain"]
    for part, maps in zip(figure.subfigs, (signed, positive), strict=True):
        shown = [axis.images[0] for axis in part.axes if axis.images]
        np.testing.assert_array_equal([image.get_array() for image in shown], maps.reshape(-1, 4, 4))
        assert {image.get_cmap().name for image in shown} == {"RdBu_r"}
        assert all(low == -high for low, high in (image.get_clim() for image in shown))


def test_predictions_are_told_apart_without_their_colours():
    image = Image.new("L", (8, 6))
    likeliest = [("cat", 0.7), ("dog", 0.2), ("a very long name of a class, which goes on", 0.1)]
    cases = [
        figures.PredictedImage(image, likeliest, ("cat", 0.7), "a.jpg"),
        figures.PredictedImage(image, likeliest, ("dog", 0.2)),
        figures.PredictedImage(image, likeliest),
    ]
    figure = figures.plot_predictions(cases, "title")
    pictures, bars = figure.axes[:3], figure.axes[3:6]
    assert [axis.get_title() for axis in pictures] == ["a.jpg\n✓ right", "✗ wrong; true: dog (20%)", ""]
    styles = [axis.spines["left"].get_linestyle() for axis in pictures]
    assert styles == ["solid", "dashed", "solid"] or styles == ["-", "--", "-"]
    texts = ["cat 70%", "dog 20%", "a very long name of a cla... 10%"]
    assert [[text.get_text() for text in axis.texts] for axis in bars] == [texts] * 3
    bold = [[text.get_fontweight() for text in axis.texts].count("bold") for axis in bars]
    assert bold == [1, 1, 0]


@pytest.mark.parametrize("count", [1, 5, 17])
def test_every_image_has_a_place_in_the_grid(count):
    case = figures.PredictedImage(Image.new("RGB", (8, 6)), [("cat", 1.0)], ("cat", 1.0))
    figure = figures.plot_predictions([case] * count, "title")
    assert sum(bool(axis.images) for axis in figure.axes) == count


def test_branches_share_a_scale_and_that_of_the_difference_is_symmetric(picture):
    map1, map2, lam = rng.random((2, 3, 3)), rng.random((2, 3, 3)), np.array([0.2, 0.7])
    difference = map1 - lam[:, None, None] * map2
    figure = figures.plot_branches(picture, map1, map2, difference, lam, "title")
    rows = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in rows] == ["A1", "A2", "A1 - 0.200 A2", "A1", "A2", "A1 - 0.700 A2"]
    limits = [axis.images[0].get_clim() for axis in rows]
    assert limits[0] == limits[1] == (0, max(map1[0].max(), map2[0].max()))
    assert limits[2] == (-np.abs(difference[0]).max(), np.abs(difference[0]).max())


def test_the_tile_of_a_patch_is_its_similarity_to_all_others():
    similarity = rng.uniform(-1, 1, (6, 6))
    figure = figures.plot_positions(similarity, (2, 3), "title")
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (2 * 3 - 1, 3 * 4 - 1)
    np.testing.assert_array_equal(shown[3:5, 4:7], similarity[4].reshape(2, 3))
    assert np.ma.getmaskarray(shown)[2].all()


def test_lambda_is_one_line_per_model_with_a_band_if_there_are_several_values(saved_figures, tmp_path):
    lam = rng.random((3, 4))
    figure = figures.plot_lambdas({"one": lam[:, 0], "many": lam}, "title")
    one, many, _ = figure.axes[0].lines
    np.testing.assert_array_equal(one.get_ydata(), lam[:, 0])
    np.testing.assert_allclose(many.get_ydata(), lam.mean(1))
    assert len(figure.axes[0].collections) == 1
    figures.save(figure, tmp_path / "lambda.png", one=lam[:, 0], many=lam)
    assert saved_figures == [figure]
    np.testing.assert_array_equal(np.load(tmp_path / "lambda.npz")["many"], lam)


def test_statistics_have_one_dot_per_head():
    statistics = HeadStatistics(*torch.rand(3, 5, 2))
    figure = figures.plot_statistics({"a": statistics, "b": statistics}, "title")
    for place, axis in enumerate(figure.axes):
        dots = axis.collections[0].get_offsets()
        np.testing.assert_allclose(dots[:, 1], statistics[place].flatten())
        assert axis.get_ylim()[0] == 0


def test_curves_are_means_over_the_images_and_the_legend_has_their_area():
    curve = np.array([[1.0, 0.5, 0.0], [0.5, 0.5, 0.5]])
    figure = figures.plot_faithfulness({"deletion": {"rollout": curve}, "insertion": {"rollout": curve}}, "title")
    line = figure.axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.75, 0.5, 0.25])
    assert line.get_label() == "rollout: area 0.500"
    assert "deleted" in figure.axes[0].get_xlabel()
    assert "inserted" in figure.axes[1].get_xlabel()
