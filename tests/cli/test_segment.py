"""diffvit segment trains dense heads on several networks, and compares them on the same masks."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from diffvit_timm.data.masks import load_masks
from diffvit_timm.models.segmentation import SegmentationNetwork
from diffvit_timm.training.segmentation import measure_segmentation
from diffvit_timm.training.segmentation_config import SegmentationOptions


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """48 training and 12 test images of 16 x 16 pixels, with a bright square of 8 x 8 that is class 1."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 12)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((16, 16), np.uint8)
            y, x = 8 * rng.integers(0, 2, 2)
            mask[y : y + 8, x : x + 8] = 1
            pixels = rng.integers(0, 90, (16, 16, 3)) + 150 * mask[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{i}.png")
    (folder / "classes.txt").write_text("field\nsquare\n")
    return folder


FAST = ["--layers", 2, "--batch-size", 8, "--augment", "none", "--lr", 0.02, "--epochs", 6]


def test_networks_learn_the_masks_and_stand_in_one_table(diffvit, weights, squares, tmp_path):
    models = [weights("plain", attn="plain"), weights("diff")]
    result = diffvit("segment", *models, "--dataset", squares, *FAST, "--output", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    rows = written["rows"]
    assert [row["model"] for row in rows] == ["plain", "diff"]
    assert all(row["low"] <= row["mean_iou"] <= row["high"] and row["mean_iou"] > 0.9 for row in rows)
    assert rows[0]["difference"] is None
    assert rows[1]["difference"] == pytest.approx(rows[1]["mean_iou"] - rows[0]["mean_iou"])
    assert set(written["iou_per_class"]["diff"]) == {"field", "square"}
    assert result["images"] == 12
    names = {"segmentation.csv", "segmentation.json", "predictions.png", "plain", "diff"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    lines = (tmp_path / "out" / "diff" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 2


def test_the_saved_parts_give_the_tested_network(diffvit, weights, squares, tmp_path):
    options = [*FAST, "--head", "conv", "--fine-tune", "--lr", 0.003]
    rows = diffvit("segment", weights("net"), "--dataset", squares, *options, "--output", tmp_path / "out")["rows"]
    backbone = timm.create_model(f"local-dir:{tmp_path}/out/net/backbone", pretrained=True)
    network = SegmentationNetwork(backbone, 2, "conv", layers=2)
    network.head.load_state_dict(load_file(tmp_path / "out" / "net" / "head.safetensors"))
    counts, _ = measure_segmentation(network, load_masks(str(squares)), SegmentationOptions(batch_size=8), "cpu")
    assert counts.pixel_accuracy == pytest.approx(rows[0]["pixel_accuracy"], abs=1e-4)


def test_a_frozen_backbone_keeps_its_weights(diffvit, weights, squares, tmp_path):
    folder = weights("net")
    diffvit("segment", folder, "--dataset", squares, *FAST, "--epochs", 1, "--output", tmp_path / "out")
    before, after = (
        load_file(place / "model.safetensors") for place in (folder, tmp_path / "out" / "net" / "backbone")
    )
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_the_same_seed_gives_the_same_network(diffvit, weights, squares, tmp_path):
    options = ["--dataset", squares, *FAST, "--epochs", 1, "--augment", "crop+flip"]
    first, again, other = (
        diffvit("segment", weights("net"), *options, "--seed", seed, "--output", tmp_path / name)["rows"][0]["mean_iou"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "x"], "MODELS is empty: name at least one"),
        (["net"], "--dataset"),
        (["net", "--dataset", "./nowhere"], "--dataset ./nowhere is not a folder"),
        (["vit_tinyest", "--dataset", "x"], "MODELS vit_tinyest is not known to timm"),
        (["net", "--dataset", "x", "--layers", 0], "--layers 0 must be at least 1"),
        (["net", "--dataset", "x", "--lr", 0], "--lr 0.0 must be above 0"),
        (["net", "--dataset", "x", "--backbone-lr-scale", 0.1], "--backbone-lr-scale 0.1 has no effect without"),
        (["net", "--dataset", "x", "--augment", "none", "--crop-scale", 0.1], "--crop-scale 0.1 has no effect without"),
        (["net", "--dataset", "x", "--img-size", 1, 2, 3], "--img-size 1 2 3 must be one positive number of pixels"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(refusal, weights, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights("net")
    before = sorted(tmp_path.rglob("*"))
    assert message in refusal("segment", *options)
    assert sorted(tmp_path.rglob("*")) == before


def test_more_images_per_batch_than_there_are_and_more_layers_than_blocks_are_refused(
    refusal, weights, squares, tmp_path
):
    net = weights("net")
    options = ["--dataset", squares, "--output", tmp_path / "out"]
    assert "--batch-size 64 is more than the 48 training images" in refusal(
        "segment", net, *options, "--batch-size", 64, "--layers", 1
    )
    assert "--layers 5 is not possible" in refusal("segment", net, *options, "--layers", 5)
