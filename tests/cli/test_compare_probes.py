"""diffvit compare probes classifies images by the features of frozen networks."""

import csv
import json

import numpy as np
import pytest

from diffvit_timm.inspection import features
from diffvit_timm.models.pretrained import load_model


def test_every_network_and_probe_has_a_row_and_the_pictures_are_written(diffvit, weights, image_folder, tmp_path):
    models = [weights("plain", attn="plain"), weights("diff")]
    options = ["--dataset", image_folder, "--features", "head", "both", "--output", tmp_path / "out"]
    result = diffvit("compare", "probes", *models, *options)
    written = json.loads((tmp_path / "out" / "probes.json").read_text())
    rows = written["rows"]
    assert [(row["model"], row["features"], row["probe"]) for row in rows] == [
        (name, kind, probe) for name in ("plain", "diff") for kind in ("head", "both")
        for probe in ("knn", "linear", "logreg")
    ]  # fmt: skip
    assert all(row["low"] <= row["accuracy"] <= row["high"] and row["images"] == 18 for row in rows)
    assert [row["width"] for row in rows] == 2 * (3 * [32] + 3 * [64])
    for row, base in zip(rows[6:], rows[:6], strict=True):
        assert row["difference"] == pytest.approx(row["accuracy"] - base["accuracy"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert base["difference"] is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"probes.csv", "probes.json", "probes.png"}
    header, *lines = csv.reader((tmp_path / "out" / "probes.csv").read_text().splitlines())
    assert (header, len(lines)) == (list(rows[0]), 12)
    assert set(written["fingerprints"]) == {"train", "val", "test"}
    assert len(result["rows"]) == 12


def test_a_second_call_reads_the_features_unless_there_is_no_cache(
    diffvit, weights, image_folder, tmp_path, monkeypatch
):
    model, cache = weights("net"), tmp_path / "cache"
    first = diffvit("compare", "probes", model, "--dataset", image_folder, "--cache", cache, "--output", tmp_path / "a")
    passes, extract = [], features._extract_parts
    monkeypatch.setattr(features, "_extract_parts", lambda *args: passes.append(args) or extract(*args))
    again = diffvit("compare", "probes", model, "--dataset", image_folder, "--cache", cache, "--output", tmp_path / "b")
    assert not passes
    assert again["rows"] == first["rows"]
    uncached = ["--dataset", image_folder, "--cache", "none", "--probes", "knn", "--output", tmp_path / "c"]
    assert diffvit("compare", "probes", model, *uncached)["rows"] == first["rows"][:1]
    assert len(passes) == 3


def test_fewer_images_keep_every_class_and_the_probe_is_not_in_reduced_precision(
    diffvit, weights, image_folder, tmp_path
):
    options = ["--dataset", image_folder, "--max-train-samples", 20, "--images", 9, "--precision", "bf16"]
    rows = diffvit("compare", "probes", weights("net"), *options, "--output", tmp_path / "out")["rows"]
    assert [row["images"] for row in rows] == [9, 9, 9]
    linear = next(row for row in rows if row["probe"] == "linear")
    assert linear["accuracy"] >= 4 / 9  # the weights of a probe under autocast would stay at 0


def test_no_weight_of_the_network_changes(diffvit, weights, image_folder, tmp_path):
    folder = weights("net")
    before = {name: tensor.clone() for name, tensor in load_model(str(folder)).state_dict().items()}
    diffvit("compare", "probes", folder, "--dataset", image_folder, "--output", tmp_path / "out")
    after = load_model(str(folder)).state_dict()
    assert all(np.array_equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "MODELS is empty: name at least one"),
        (["net", "net"], "MODELS net net names a model twice"),
        (["vit_tinyest"], "MODELS vit_tinyest is not known to timm"),
        (
            ["resnet18", "--features", "cls"],
            "MODELS resnet18 has no class token, so --features cls cannot be: use head",
        ),
        (["net", "--features", "tokens"], "invalid choice 'tokens' for argument '--features'"),
        (["net", "--probes", "knn", "knn"], "--probes knn knn names a value twice: give each once"),
        (["net", "--val-share", 0], "--val-share 0.0 must be between 0 and 1"),
        (["net", "--images", -1], "--images -1 must be at least 0"),
        (["net", "--device", "cuda:9"], "--device cuda:9 cannot be used: "),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(refusal, weights, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights("net")
    before = sorted(tmp_path.rglob("*"))
    assert message in refusal("compare", "probes", *options)
    assert sorted(tmp_path.rglob("*")) == before


def test_more_images_than_there_are_are_refused(refusal, weights, image_folder, tmp_path):
    options = [weights("net"), "--dataset", image_folder, "--output", tmp_path / "out"]
    assert "--max-train-samples 33 exceeds the 32 train images" in refusal(
        "compare", "probes", *options, "--max-train-samples", 33
    )
    assert not (tmp_path / "out").exists()


def test_a_cache_that_is_a_file_is_refused(refusal, weights, tmp_path):
    (tmp_path / "file").write_text("x")
    message = refusal("compare", "probes", weights("net"), "--cache", tmp_path / "file", "--output", tmp_path / "out")
    assert message == f"--cache {tmp_path / 'file'} is a file: choose a folder"
