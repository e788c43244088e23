"""diffvit explain draws what models attend to, with the numbers beside each picture."""

import numpy as np
import pytest
import timm

from diffvit_timm.models.pretrained import save_pretrained


# The comparison of models below draws its figures; these tests read only the numbers beside them.
@pytest.mark.usefixtures("undrawn_figures")
@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, {"lambda", "cat-00-branches", "cat-01-branches", "positions"}),
        ({"attn": "diff_v2", "pos_embed": "sincos"}, {"lambda", "cat-00-branches", "cat-01-branches", "positions"}),
        ({"attn": "plain", "pos_embed": "none"}, set()),
        ({"class_token": False, "global_pool": "avg", "num_classes": 0}, {"lambda", "cat-00-branches",
                                                                         "cat-01-branches", "positions"}),
    ],
)  # fmt: skip
def test_every_picture_has_its_numbers_beside_it(diffvit, weights, photographs, tmp_path, settings, more):
    folder = tmp_path / "pictures"
    result = diffvit("explain", *photographs, "--model", weights("net", **settings), "--output", folder)
    expected = {"rollout", "statistics"} | more
    expected |= {f"cat-0{i}-{kind}" for i in (0, 1) for kind in ("heads", "layers", "last-layer")}
    assert {path.stem for path in folder.glob("*.png")} == {path.stem for path in folder.glob("*.npz")} == expected
    assert len(result["predictions"]["net"]) == 2
    assert set(result["predictions"]["net"][0].split()[:1]) <= {"cat", "dog", "owl"}
    numbers = np.load(folder / "cat-00-heads.npz")
    assert {name: array.shape for name, array in numbers.items()} == dict.fromkeys(["layer_0", "layer_1"], (2, 2, 2))


def test_models_are_compared_on_the_same_images(diffvit, weights, photographs, tmp_path):
    first, second, headless = weights("first"), weights("second", attn="plain"), weights("third", num_classes=0)
    folder = tmp_path / "pictures"
    diffvit("explain", *photographs, "--model", first, "--compare", second, headless, "--output", folder)
    compared = np.load(folder / "compare.npz")
    assert set(compared) == {"rollout\nfirst", "rollout\nsecond", "rollout\nthird", "for its prediction\nfirst",
                             "for its prediction\nsecond"}  # fmt: skip
    assert (folder / "rollout-1.png").exists()
    heads = np.load(folder / "cat-01-compare-heads.npz")
    assert set(heads) == {f"{name} layer_{i}" for name in ("first", "second", "third") for i in (0, 1)}
    np.testing.assert_array_equal(heads["first layer_1"][:], np.load(folder / "cat-01-heads.npz")["layer_1"])


@pytest.mark.usefixtures("undrawn_figures")
def test_titles_name_the_method_and_every_model(diffvit, weights, photographs, tmp_path, saved_figures):
    first, second = weights("first", attn="diff_v2"), weights("second", attn="plain")
    diffvit("explain", photographs[0], "--model", first, "--compare", second, "--output", tmp_path / "pictures")
    titles = [figure.get_suptitle() or figure.axes[0].get_title() for figure in saved_figures]
    kinds = {"first": "first, differential attention, version 2", "second": "second, plain attention"}
    methods = ("Attention", "Positive part", "Last layer", "Rollout", "Similarity of position", "Lambda", "Statistics")
    for title in titles:
        assert title.startswith(methods)
        assert "first" in title or "second" in title
        assert title.startswith("Attention in every layer and head of") or any(kind in title for kind in kinds.values())
    compared = next(title for title in titles if title.startswith("Attention in every"))
    assert compared == "Attention in every layer and head of first and second, image cat-00"
    assert any(all(kind in title for kind in kinds.values()) for title in titles)


@pytest.mark.usefixtures("undrawn_figures")
def test_more_pixels_give_finer_maps_of_all_models(diffvit, weights, photographs, tmp_path):
    first, second = weights("first"), weights("second", attn="plain")
    shared = ["--compare", second, "--output", tmp_path / "pictures"]
    diffvit("explain", photographs[0], "--model", first, "--img-size", "32", "48", *shared)
    heads = np.load(tmp_path / "pictures" / "cat-00-compare-heads.npz")
    assert {array.shape for array in heads.values()} == {(2, 4, 6)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "IMAGES nowhere.png is not a file"),
        (["{}", "{}"], "must have different names"),
        (["{}", "--model", "vit_tinyest"], "--model vit_tinyest is not known to timm"),
        (["{}", "--compare", "vit_tinyest"], "--compare vit_tinyest is not known to timm"),
        (["{}", "--model", "vit", "--compare", "vit"], "--compare vit and --model vit name a model twice"),
        ([__file__], "test_explain.py does not decode"),
        (["{}", "--img-size", "0"], "--img-size 0 must be one positive number of pixels, or height and width"),
        (["{}", "--img-size", "8", "8", "8"], "--img-size 8 8 8 must be one positive number of pixels"),
        (["{}", "--model", "diffvit_nano", "--img-size", "9999"], "--img-size 9999 must be at most 8192"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(refusal, photographs, arguments, message, tmp_path):
    arguments = [argument.format(photographs[0]) for argument in arguments]
    assert message in refusal("explain", *arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_without_attention_is_named(refusal, photographs, tmp_path):
    save_pretrained(timm.create_model("test_convnext", num_classes=3), tmp_path / "net")
    message = refusal("explain", photographs[0], "--model", tmp_path / "net", "--output", tmp_path / "out")
    assert message.startswith(f"--model {tmp_path / 'net'}: the attention of a ConvNeXt cannot be captured")
    assert not (tmp_path / "out").exists()
