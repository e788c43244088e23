"""diffvit compare robustness measures networks on the same corrupted images."""

import csv
import json

import pytest
import timm

from diffvit_timm.cli import main
from diffvit_timm.cli.console import rounded
from diffvit_timm.models.pretrained import save_pretrained

FEW = ["--corruptions", "fog", "contrast", "--severities", 5, 1]


def test_every_network_and_condition_has_a_row(diffvit, weights, image_folder, tmp_path):
    models = [weights("plain", attn="plain"), weights("diff")]
    options = ["--dataset", image_folder, *FEW, "--output", tmp_path / "out"]
    result = diffvit("compare", "robustness", *models, *options)
    written = json.loads((tmp_path / "out" / "robustness.json").read_text())
    rows = written["rows"]
    expected = [("clean", 0), ("fog", 1), ("fog", 5), ("contrast", 1), ("contrast", 5), ("mean", 0)]
    assert [(row["model"], row["corruption"], row["severity"]) for row in rows] == [
        (name, *condition) for name in ("plain", "diff") for condition in expected
    ]
    assert all(row["images"] == 18 and row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    assert [row["difference"] is None for row in rows] == [True] * 6 + [False] * 6
    assert set(written["parameters"]) == {"fog", "contrast"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "robustness.csv", "robustness.json", "robustness.png", "corruptions.png"
    }  # fmt: skip
    header, *lines = csv.reader((tmp_path / "out" / "robustness.csv").read_text().splitlines())
    assert header == list(rows[0])
    assert len(lines) == len(rows)
    assert result["images"] == 18
    for name, clean, mean in (("plain", 0, 5), ("diff", 6, 11)):
        assert result["models"][name] == rounded({"clean": rows[clean], "mean": rows[mean]})


def test_the_printed_table_has_both_means_and_each_severity(weights, image_folder, tmp_path, capsys):
    main(
        [
            "compare", "robustness", str(weights("net")), "--dataset", str(image_folder), "--images", "5",
            "--corruptions", "fog", "--output", str(tmp_path / "out"),
        ]
    )  # fmt: skip
    printed = capsys.readouterr().err
    assert "5 images of " in printed
    for part in ("clean", "mCA", "NLL", "ECE", "difference in points", "accuracy at severity", "  fog "):
        assert part in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "MODELS is empty: name at least one"),
        (["net", "net"], "MODELS net net names a model twice"),
        (["vit_tinyest"], "MODELS vit_tinyest is not known to timm"),
        (["net", "--device", "cuda:9"], "--device cuda:9 cannot be used: "),
        (["net", "--images", -1], "--images -1 must be at least 0"),
        (["net", "--images", 1], "--images 1 has no interval: take at least two, or 0 for all"),
        (["net", "--workers", -1], "--workers -1 must be at least 0"),
        (["net", "--corruptions", "rain"], "--corruptions rain is not known: choose from gaussian_noise, shot_noise, "),
        (["net", "--corruptions", "fog", "fog"], "--corruptions fog fog names a value twice"),
        (["net", "--corruptions"], "--corruptions needs at least one value"),
        (["net", "--severities", 0], "--severities 0 is not known: choose from 1, 2, 3, 4, 5"),
        (["net", "--severities", 1, 1], "--severities 1 1 names a value twice"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(refusal, options, message, tmp_path):
    assert refusal("compare", "robustness", *options, "--output", tmp_path / "out").startswith(message)
    assert not (tmp_path / "out").exists()


def test_more_images_than_the_test_split_has_are_refused(refusal, weights, image_folder, tmp_path):
    options = ["--dataset", image_folder, "--images", 100, "--output", tmp_path / "out"]
    message = refusal("compare", "robustness", weights("net"), *options)
    assert message == f"--images 100 is more than the 18 test images of --dataset {image_folder}: lower it"
    assert not (tmp_path / "out").exists()


def test_a_network_of_other_classes_is_refused(refusal, image_folder, tmp_path):
    save_pretrained(timm.create_model("test_vit", num_classes=7), tmp_path / "net")
    options = ["--dataset", image_folder, "--output", tmp_path / "out"]
    message = refusal("compare", "robustness", tmp_path / "net", *options)
    assert message.startswith(f"MODELS {tmp_path / 'net'}: the 7 classes of the network are neither the dataset's 3")
    assert not (tmp_path / "out").exists()
