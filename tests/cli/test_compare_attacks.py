"""diffvit compare attacks measures networks on images that are changed against them."""

import csv
import json

import pytest

from diffvit_timm.cli import main


def test_every_network_and_attack_has_a_row(diffvit, weights, image_folder, tmp_path, capsys):
    models = [weights("plain", attn="plain"), weights("diff")]
    options = ["--dataset", image_folder, "--images", 0, "--epsilons", 8, 2, "--steps", 2, "--output", tmp_path / "out"]
    result = diffvit("compare", "attacks", *models, *options)
    rows = json.loads((tmp_path / "out" / "attacks.json").read_text())["rows"]
    assert [(row["model"], row["epsilon"]) for row in rows] == [(n, e) for n in ("plain", "diff") for e in (0, 2, 8)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"attacks.csv", "attacks.json", "attacks.png"}
    header, *lines = csv.reader((tmp_path / "out" / "attacks.csv").read_text().splitlines())
    assert header == list(rows[0])
    assert len(lines) == 6
    assert result["images"] == 18
    assert result["models"]["plain"]["lambda"] is None
    assert [row["epsilon"] for row in result["models"]["diff"]["attacks"]] == [0, 2, 8]


def test_the_printed_table_names_the_attack(weights, image_folder, tmp_path, capsys):
    options = ["--dataset", str(image_folder), "--images", "5", "--steps", "1", "--output", str(tmp_path / "out")]
    main(["compare", "attacks", str(weights("net")), *options])
    printed = capsys.readouterr().err
    for part in ("5 images of ", "1 steps of projected gradient descent", "epsilon", "lambda", "difference in points"):
        assert part in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "MODELS is empty: name at least one"),
        (["net", "net"], "MODELS net net names a model twice"),
        (["vit_tinyest"], "MODELS vit_tinyest is not known to timm"),
        (["net", "--device", "cuda:9"], "--device cuda:9 cannot be used: "),
        (["net", "--images", 1], "--images 1 has no interval: take at least two, or 0 for all"),
        (["net", "--steps", 0], "--steps 0 must be at least 1"),
        (["net", "--epsilons", 0], "--epsilons 0.0 must be above 0 and at most 255"),
        (["net", "--epsilons", "nan"], "--epsilons nan must be "),
        (["net", "--epsilons", 2, 2], "--epsilons 2.0 2.0 names a value twice: give each once"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(refusal, options, message, tmp_path):
    assert refusal("compare", "attacks", *options, "--output", tmp_path / "out").startswith(message)
    assert not (tmp_path / "out").exists()


def test_more_images_than_the_test_split_has_are_refused(refusal, weights, image_folder, tmp_path):
    options = ["--dataset", image_folder, "--images", 100, "--output", tmp_path / "out"]
    message = refusal("compare", "attacks", weights("net"), *options)
    assert message == f"--images 100 is more than the 18 test images of --dataset {image_folder}: lower it"
    assert not (tmp_path / "out").exists()
