"""diffvit compare faithfulness measures several models on the same images."""

import json

import numpy as np
import pytest
import timm

from diffvit_timm.cli import main
from diffvit_timm.models.pretrained import save_pretrained


def test_every_model_curve_and_kind_of_heat_map_has_an_area(diffvit, weights, image_folder, tmp_path):
    models = [str(weights("diff")), str(weights("plain", attn="plain"))]
    options = ["--dataset", image_folder, "--images", 5, "--steps", 4, "--output", tmp_path / "out"]
    areas = diffvit("compare", "faithfulness", "--models", *models, *options)["areas"]
    assert set(areas) == set(models)
    for curves in areas.values():
        assert set(curves) == {"deletion", "insertion"}
        for kinds in curves.values():
            assert len(kinds) == 4
            assert all(0 < kind["area"] < 1 and kind["images"] == 5 for kind in kinds.values())
    assert np.load(tmp_path / "out" / "faithfulness-1.npz")["deletion, rollout"].shape == (5, 5)


def test_digits_among_distractors_have_the_share_of_the_heat_on_the_digit(weights, digit_folder, tmp_path, capsys):
    model = str(weights("net", in_chans=1, img_size=40))
    options = ["--dataset", f"{digit_folder}+clutter", "--images", "6", "--steps", "2"]
    main(["compare", "faithfulness", "--models", model, *options, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr()
    measures = json.loads(printed.out.splitlines()[-1])["areas"][model]
    assert list(measures) == ["deletion", "insertion", "on the object"]
    for kind in measures["on the object"].values():
        assert 0 < kind["share"] < 0.2
        assert kind["images"] == 6
    assert np.load(tmp_path / "out" / "faithfulness.npz")["on the object, rollout"].shape == (6,)
    assert "On the object: share of the heat that lies on it." in printed.err
    random = measures["on the object"]["random"]
    assert f"{random['share']:.3f} ± {random['half_interval']:.3f}" in printed.err


def test_more_images_than_the_test_split_has_are_refused(refusal, weights, image_folder, tmp_path):
    message = refusal(
        "compare", "faithfulness", "--models", weights("net"), "--dataset", image_folder, "--output", tmp_path / "out"
    )
    assert message.startswith(f"--images 100 is more than the 18 test images of --dataset {image_folder}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "net", "--device", "cuda:9"], "--device cuda:9 cannot be used: "),
        (["--models", "vit_tinyest"], "--models vit_tinyest is not known to timm"),
        (["--models", "net", "net"], "--models net net names a model twice"),
        (["--models", "net", "--steps", 0], "--steps 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(refusal, options, message, tmp_path):
    assert refusal("compare", "faithfulness", *options, "--output", tmp_path / "out").startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_network_without_a_head_is_refused(refusal, image_folder, tmp_path):
    save_pretrained(timm.create_model("test_vit", num_classes=0), tmp_path / "net")
    options = ["--dataset", image_folder, "--images", 2, "--output", tmp_path / "out"]
    message = refusal("compare", "faithfulness", "--models", tmp_path / "net", *options)
    assert message.startswith(f"--models {tmp_path / 'net'} is not a ViT with a head")
    assert not (tmp_path / "out").exists()
