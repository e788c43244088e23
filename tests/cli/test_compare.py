"""diffvit compare conversions and compare clip measure networks on the same images; bad input is one line."""

import csv
import json

import pytest
import timm

from diffvit_timm.cli import main
from diffvit_timm.models.pretrained import save_pretrained
from diffvit_timm.zero_shot.clip import load_clip


def test_conversions_are_compared_on_real_weights(diffvit, parquet_folder, hub_cache):
    options = ["--dataset", parquet_folder, "--images", 2, "--calibration-images", 2]
    result = diffvit("compare", "conversions", *options)
    assert result["mirror, version 2"]["agreement"] == 1.0
    assert result["mirror, version 2"]["output_error"] < 1e-5


def test_the_table_of_conversions_explains_its_columns_and_why_there_are_no_pairs(weights, image_folder, capsys):
    source = weights("plain", attn="plain", num_heads=1)
    main(["compare", "conversions", "--source", str(source), "--dataset", str(image_folder), "--images", "4"])
    printed = capsys.readouterr()
    rows = printed.err.splitlines()
    assert "no pairs, because the number of heads, 1, is odd" in rows
    assert f"{source} and its conversions on 4 test images, calibrated on 32 training images." in rows
    for part in ("share of the images with the source's top-1 class", "KL(source || converted)", "in\nnats",
                 "relative error of the logits", "more parameters: than the source has",
                 "gradient: that of the second"):  # fmt: skip
        assert part in printed.err
    assert list(json.loads(printed.out)) == [row.rsplit(maxsplit=6)[0] for row in rows[-12:]]


@pytest.mark.parametrize("settings", [{}, {"num_classes": 0}], ids=str)
def test_a_folder_of_weights_is_a_source_with_and_without_a_head(diffvit, weights, image_folder, settings):
    source = weights("plain", attn="plain", **settings)
    result = diffvit("compare", "conversions", "--source", source, "--dataset", image_folder, "--images", 4)
    assert {"pairs, neighbours", "pairs, by their maps"} < set(result)
    assert all(row["images"] == 4 and row["output_error"] >= 0 for row in result.values())
    assert (result["mirror, version 2"]["agreement"] is None) == ("num_classes" in settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "vit_tinny"], "--source vit_tinny is not known to timm"),
        (["--source", "diffvit_nano"], "--source diffvit_nano has no pretrained weights: pass --no-pretrained"),
        (["--source", "{diff}"], "--source {diff}: DiffVisionTransformer is differential already: blocks.0.attn is a "),
        (["--dataset", "nowhere/images"], "--dataset nowhere/images is not"),
        (["--images", "-1"], "--images -1 must be at least 0"),
        (["--calibration-images", "0"], "--calibration-images 0 must be at least 1"),
        (["--test-share", "2"], "--test-share 2.0 must be in [0, 1)"),
    ],
)
def test_a_source_or_option_that_cannot_be_used_is_one_line(refusal, weights, parquet_folder, options, message):
    names = {"diff": weights("diff")}
    options = [option.format(**names) for option in options]
    dataset = [] if "--dataset" in options else ["--dataset", parquet_folder]
    assert refusal("compare", "conversions", *dataset, *options).startswith(message.format(**names))


def test_clip_its_mirrored_twin_and_a_trained_network_are_compared(
    diffvit, clip_folder, weights, image_folder, tmp_path
):
    result = diffvit(
        "compare", "clip", "--clip", clip_folder, "--convert", "mirror", "--supervised", weights("net"),
        "--dataset", image_folder, "--output", tmp_path / "out"
    )  # fmt: skip
    assert [(row["model"], row["images"]) for row in result["rows"]] == [
        (clip_folder.name, 18), (f"{clip_folder.name}, differential", 18), ("net", 18)
    ]  # fmt: skip
    assert result["agreement"][0][1] == 1.0  # version 2 starts as exactly the source
    assert set(result["alone_right"]) == {clip_folder.name, "net"}
    assert all(row["top5"] == 1.0 for row in result["rows"])  # of three classes
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "agreement.png", "first-alone-right.png", "last-alone-right.png", "result.json", "table.csv"
    }  # fmt: skip
    header, *rows = csv.reader((tmp_path / "out" / "table.csv").read_text().splitlines())
    assert header == list(result["rows"][0])
    assert [row[0] for row in rows] == [row["model"] for row in result["rows"]]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["rows"][2]["model"] == "net"


def test_more_images_than_the_test_split_has_are_all_of_them(diffvit, clip_folder, image_folder, tmp_path):
    result = diffvit(
        "compare", "clip", "--clip", f"local-dir:{clip_folder}", "--convert", "svd", "--images", 100,
        "--dataset", image_folder, "--output", tmp_path / "out"
    )  # fmt: skip
    assert [row["images"] for row in result["rows"]] == [18, 18]


def test_a_network_of_imagenet_is_asked_for_the_classes_that_it_knows(
    refusal, clip_folder, image_folder, tmp_path, capsys
):
    save_pretrained(timm.create_model("test_vit", num_classes=1000), tmp_path / "net")
    arguments = [
        "compare", "clip", "--clip", clip_folder, "--supervised", tmp_path / "net", "--dataset", image_folder,
        "--output", tmp_path / "out",
    ]  # fmt: skip
    message = refusal(*arguments)
    assert message.startswith(f"--supervised {tmp_path / 'net'}: none of the classes (cat, dog, owl, ...)")
    assert "pass --class-map" in message
    assert not (tmp_path / "out").exists()
    (tmp_path / "map.yaml").write_text("cat: [281, 282]\ndog: [207]\n")
    main([str(word) for word in [*arguments, "--class-map", tmp_path / "map.yaml"]])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["classes"] == 2
    assert [row["images"] for row in result["rows"]] == [12, 12]
    assert "counted on the 12 images of 2 classes that all know; not on those of owl" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare --clip with: pass --supervised or --convert"),
        (["--convert", "mirror", "--templates", "nowhere.txt"], "--templates nowhere.txt is neither"),
        (["--supervised", "vit_tinyest"], "--supervised vit_tinyest is not known to timm"),
        (["--supervised", "{seven}", "--clip", "RN50:openai"], "the 7 classes of the network"),  # before CLIP loads
        (["--supervised", "{seven}"], "neither the dataset's 3 by name nor ImageNet's 1,000"),
        (["--convert", "mirror", "--output", "{used}"], "is not empty"),
        (["--convert", "svd", "--device", "cuda:9"], "--device cuda:9 cannot be used: "),
        (["--supervised", "{seven}", "--clip", "RN5:openai"], "--clip RN5:openai is not known to open_clip"),
        (["--supervised", "x", "--clip", "x"], "--supervised x and --clip name the same folder"),
        (["--convert", "svd", "--class-map", "map.yaml"], "--class-map map.yaml has no effect without --supervised"),
        (["--supervised", "{seven}", "--class-map", "map.yaml"], "--class-map map.yaml is not a file"),
        (["--convert", "svd", "--batch-size", "0"], "--batch-size 0 must be at least 1"),
    ],
)
def test_networks_that_cannot_be_compared_are_one_line(
    refusal, clip_folder, image_folder, tmp_path, monkeypatch, arguments, message
):
    save_pretrained(timm.create_model("test_vit", num_classes=7), tmp_path / "seven")
    places = {"seven": tmp_path / "seven", "used": tmp_path}
    arguments = [argument.format(**places) for argument in arguments]
    monkeypatch.chdir(tmp_path)
    given = refusal("compare", "clip", "--clip", clip_folder, "--dataset", image_folder, *arguments)
    assert message in given
    assert {path.name for path in tmp_path.iterdir()} == {"seven"}


def test_an_image_tower_that_cannot_be_converted_is_named(refusal, clip_folder, image_folder, tmp_path, monkeypatch):
    clip = load_clip(str(clip_folder))
    clip.model.visual.pool_type = "avg"
    monkeypatch.setattr("diffvit_timm.cli.commands.compare_clip.load_clip", lambda name: clip)
    arguments = ("--clip", clip_folder, "--convert", "svd", "--dataset", image_folder, "--output", tmp_path / "out")
    message = refusal("compare", "clip", *arguments)
    assert message.startswith(f"--convert svd: {clip_folder.name}: its image tower, a VisionTransformer, is not")
    assert not (tmp_path / "out").exists()
