"""diffvit benchmark times networks, kinds of attention and training loops."""

import csv
import json

import pytest
import timm

from diffvit_timm.cli import main
from diffvit_timm.models.pretrained import save_pretrained
from diffvit_timm.studies.timing import emulation_note, hardware_name

SHAPE = ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")


@pytest.fixture
def benchmark(capsys):
    """Function: the words after `diffvit benchmark` -> its result, and the text for people on stderr."""

    def run(*words):
        capsys.readouterr()
        main(["benchmark", *map(str, words)])
        captured = capsys.readouterr()
        return json.loads(captured.out.splitlines()[-1]), captured.err

    return run


def test_every_network_precision_and_batch_size_has_a_row(diffvit, weights, image_folder, tmp_path):
    models = weights("first"), weights("second", attn="plain")
    result = diffvit(
        "benchmark", "models", "--model", *models, "test_vit", "--dataset", image_folder, "--images", 6, "--repeats", 2,
        "--batch-size", "1,3", "--output", tmp_path / "out"
    )  # fmt: skip
    rows = result["rows"]
    assert [(row["batch_size"], row["model"], row["precision"]) for row in rows] == [
        (size, model, precision)
        for size in (1, 3)
        for model in ("first", "second", "test_vit")
        for precision in ("fp32", "bf16")
    ]
    fp32, bf16 = rows[:2]
    assert (fp32["agreement"], fp32["largest_difference"]) == (1.0, 0.0)
    assert bf16["largest_difference"] > 0
    assert 0.45 < bf16["weights_mb"] / fp32["weights_mb"] < 0.55
    assert [row["accuracy"] is None for row in rows[:6]] == [False] * 4 + [True] * 2  # test_vit has no names
    assert all(0 < row["p50_ms"] <= row["p90_ms"] for row in rows)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"benchmark.csv", "benchmark.json", "benchmark.png"}
    assert (result["dataset"], result["hardware"]) == (str(image_folder), hardware_name("cpu"))


def test_the_table_is_explained_and_is_in_the_files_too(benchmark, weights, tmp_path):
    out = tmp_path / "out"
    options = ("--precision", "fp32", "--batch-size", 2, "--images", 1, "--repeats", 1, "--output", out)
    result, printed = benchmark("models", "--model", weights("net"), *options)
    assert result["dataset"] is None
    assert "random weights" not in printed
    assert f"Inference on {hardware_name('cpu')}\np50, p90: median" in printed
    assert f"{out}: the table is in benchmark.csv and benchmark.json" in printed
    written = json.loads((out / "benchmark.json").read_text())
    assert written.keys() == result.keys()
    with (out / "benchmark.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["model"] for row in table] == [row["model"] for row in written["rows"]] == ["net"]
    assert table[0].keys() == written["rows"][0].keys()


def test_clips_image_tower_is_timed_on_noise_with_a_warning_about_fp16(benchmark, tmp_path):
    result, printed = benchmark(
        "models", "--model", "clip:ViT-S-32-alt", "--precision", "fp32,fp16", "--batch-size", 1,
        "--images", 1, "--repeats", 1, "--output", tmp_path / "out"
    )  # fmt: skip
    rows = result["rows"]
    assert [row["model"] for row in rows] == ["clip:ViT-S-32-alt"] * 2
    assert [row["agreement"] for row in rows] == [None, None]  # an embedding has no classes
    assert "compared on noise" in printed
    assert "random weights, so that same, cosine and top-1 mean nothing: clip:ViT-S-32-alt (" in printed
    note = emulation_note("fp16", "cpu")
    assert note is None or note in printed


def test_a_network_without_a_head_has_no_agreement(diffvit, tmp_path):
    save_pretrained(timm.create_model("test_vit", num_classes=0), tmp_path / "net")
    options = ("--batch-size", 1, "--images", 2, "--repeats", 1, "--output", tmp_path / "out")
    rows = diffvit("benchmark", "models", "--model", tmp_path / "net", *options)["rows"]
    assert [row["agreement"] for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "clip:RN5"], "--model clip:RN5 is not known to open_clip: did you mean clip:RN50"),
        (["--model", "vit_tinyest"], "--model vit_tinyest is not known to timm"),
        (["--model", "test_vit", "test_vit"], "--model test_vit test_vit names a model twice: give each model once"),
        (["--model", "diffvit_nano", "--pretrained"], "pass --no-pretrained"),
        (["--model", "test_vit", "--precision", "bf16"], "--precision bf16 must be fp32"),
        (["--model", "test_vit", "--precision", "fp32,int4"], "--precision fp32,int4 must be"),
        (["--model", "test_vit", "--batch-size", "1,0"], "--batch-size 1,0 must be numbers from 1 on"),
        (["--model", "test_vit", "--batch-size", "1,8,1"], "--batch-size 1,8,1 names a value twice: give each once"),
        (["--model", "test_vit", "--precision", "fp32,bf16,bf16"], "--precision fp32,bf16,bf16 names a value twice"),
        (["--model", "test_vit", "--device", "cuda:9"], "--device cuda:9 cannot be used: "),
    ],
)
def test_networks_that_cannot_be_timed_are_one_line(refusal, options, message, tmp_path):
    assert message in refusal("benchmark", "models", *options, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_kind_of_attention_is_timed_and_every_time_is_kept(benchmark, tmp_path):
    out = tmp_path / "times.json"
    options = "--img-sizes 32 --batch-size 1 --repeats 2 --precisions fp32 --output"
    result, printed = benchmark("attention", *options.split(), out)
    rows, written = result["rows"], json.loads(out.read_text())
    assert [(row["model"], row["step"]) for row in rows] == [(row["model"], row["step"]) for row in written["rows"]]
    assert len(rows) == 5 * 2
    assert all(len(row["seconds"]) == 2 for row in written["rows"])
    assert [row["speed_of_plain"] for row in rows if row["model"] == "plain ViT"] == [1.0, 1.0]
    assert result["hardware"] == hardware_name("cpu")
    assert "differ from those of explicit maps" in printed
    assert f"on {hardware_name('cpu')}\n" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model vit_tiny_patch16_224", "--model vit_tiny_patch16_224 must be a diffvit_* variant"),
        ("--model diffvit_tinny_patch16", "--model diffvit_tinny_patch16 is not known to timm"),
        ("--batch-size 0", "--batch-size 0 must be at least 1"),
        ("--device tpu9", "--device tpu9 cannot be used"),
        ("--img-sizes 100", "--img-sizes 100 must be a multiple of 16"),
        ("--img-sizes", "--img-sizes needs at least one value"),
        ("--output nowhere/times.json", "--output nowhere/times.json needs the folder nowhere, which does not exist"),
        ("--output .", "--output . exists already: choose another file"),
    ],
)
def test_attention_that_cannot_be_timed_is_one_line(refusal, options, message):
    assert refusal("benchmark", "attention", *options.split()).startswith(message)


def test_both_training_loops_are_timed_on_the_same_images(benchmark, image_folder):
    options = ["--dataset", image_folder, "--batch-size", 8, "--workers", 0, "--max-steps", 5, "--rounds", 2]
    result, printed = benchmark("training", *options, "--img-size", 16, "--model-kwargs", *SHAPE)
    assert {len(result[name]) for name in ("loader alone", "this trainer", "timm's loop")} == {2}
    assert min(result["this trainer"]) > 0
    assert result["quartiles"][0] <= result["ratio"] <= result["quartiles"][1]
    assert result["hardware"] == hardware_name("cpu")
    assert f"batch 8, on {hardware_name('cpu')}\nImages per second: median" in printed


def test_a_batch_that_the_training_images_do_not_fill_is_refused(refusal, image_folder):
    message = refusal("benchmark", "training", "--dataset", image_folder, "--batch-size", 4096)
    assert message == "--batch-size 4096 is more than the 32 training images"


@pytest.mark.parametrize("option", [("--stream", "64"), ("--epochs", "2"), ("--output", "runs/fast")])
def test_options_that_the_training_loops_do_not_read_are_refused(refusal, option):
    message = refusal("benchmark", "training", *option)
    assert message == f"{' '.join(option)} has no effect on the speed of --max-steps updates: leave it out"


def test_the_loops_are_compared_on_images_of_one_size(refusal):
    message = refusal("benchmark", "training", "--progressive-sizes", "112")
    assert message == "--progressive-sizes 112 would give timm's loop larger images: leave it out"


def test_a_turn_without_an_update_is_refused(refusal):
    assert refusal("benchmark", "training", "--max-steps", 0) == "--max-steps 0 must be at least 1"
    assert refusal("benchmark", "training", "--rounds", 0) == "--rounds 0 must be at least 1"
