"""diffvit study presets: trainings of several presets as one table and common pictures."""

import csv

import pytest
import timm
import torch

import diffvit_timm  # noqa: F401 (registers the models)
from diffvit_timm.cli.parser import preset_names, presets_of_folder
from diffvit_timm.cli.training_options import parse_training
from diffvit_timm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn_figures")

SMALL = (
    "max_steps=2",
    "batch_size=8",
    "img_size=16",
    "precision=no",
    "compile=false",
    "workers=0",
    "max_val_samples=0",
)


@pytest.fixture
def study(diffvit, image_folder, tmp_path):
    """Function: presets, more arguments -> the result of short trainings; and the folder."""
    common = ["--dataset", image_folder, "--output", tmp_path / "study"]
    return lambda *presets, more=(): diffvit("study", "presets", *presets, *common, *more), tmp_path / "study"


def test_a_folder_of_presets_is_trained_once_into_one_table_with_pictures_per_attention(
    study, monkeypatch, tmp_path, saved_figures
):
    run, folder = study
    result = run("mnist", more=("--set", *SMALL))
    assert [(row["preset"], row["attention"]) for row in result["rows"]] == [
        ("mnist/balanced", "plain"), ("mnist/diff", "diff"), ("mnist/diff_v2", "diff_v2"), ("mnist/plain", "plain")
    ]  # fmt: skip
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["test_accuracy"] for row in rows] == [str(row["test_accuracy"]) for row in rows]
    name = "animals"  # of the folder of the images, below which pytest adds a number
    pictures = {path.name for path in folder.glob("*.png")}
    assert "validation.png" in pictures
    kinds = {picture for picture in pictures if picture.startswith(name)}
    assert len([picture for picture in kinds if picture.endswith("-train-loss.png")]) == 3
    assert len([picture for picture in kinds if picture.endswith("-val-loss.png")]) == 3
    # Only plain attention has two sizes.
    accuracies = sorted(picture.partition("-plain")[1] for picture in kinds if picture.endswith("-accuracy.png"))
    assert accuracies == ["", "-plain"]
    monkeypatch.setattr(Trainer, "fit", None)  # no training may begin
    assert run("mnist", more=("--set", *SMALL)) == result


def test_presets_files_and_seeds_are_trained_side_by_side(study, tmp_path):
    (tmp_path / "mine.yaml").write_text("config: scratch\nmodel: diffvit_nano\nmodel_kwargs: [embed_dim=16]\n")
    run, folder = study
    result = run(tmp_path / "mine.yaml", "mnist_nano", more=("--seeds", "2", "--set", *SMALL))
    assert [(row["preset"], row["seed"]) for row in result["rows"]] == [
        ("mine", 0), ("mnist_nano", 0), ("mine", 1), ("mnist_nano", 1)
    ]  # fmt: skip
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "mine-0", "mine-1", "mnist_nano-0", "mnist_nano-1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnits"], "--config mnits is neither a preset"),
        (["mnist", "mnist/diff"], "PRESETS mnist mnist/diff: give one or more presets of different names"),
        (["mnist", "--set", "epochs"], "--set epochs must be NAME=VALUE"),
        (["mnist", "--set", "epoch=2"], "--set: epoch is not an option of diffvit train: did you mean epochs?"),
        (["mnist", "--set", "epochs=0"], "epochs=0 must be at least 1"),
        (["mnist", "--set", "seed=2"], "--set seed=2: seed is set for each training: leave it out"),
        (["mnist", "--set", "push-to-hub=me/x"], "push-to-hub is set for each training"),
        (["mnist", "--seeds", "0"], "--seeds 0 must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_the_first_training(refusal, arguments, message, tmp_path):
    assert message in refusal("study", "presets", *arguments, "--output", tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_folder_with_something_else_is_not_written_to(refusal, tmp_path):
    (tmp_path / "table.csv").write_text("mine")
    assert "is not empty" in refusal("study", "presets", "mnist", "--output", tmp_path)


# Parameters in millions, of the paper's layer and of plain attention: those of the authors, to their two decimals.
SOURCES = {
    "cifar100": (100, {"10m": 10.55, "25m": 25.56, "50m": 50.04}),
    "bach": (4, {"10m": 11.34, "25m": 25.54, "50m": 50.38}),
}


@pytest.mark.parametrize("dataset", SOURCES)
def test_the_presets_of_the_scaling_study_have_the_sizes_and_settings_of_its_authors(dataset):
    classes, sizes = SOURCES[dataset]
    assert presets_of_folder(dataset) == sorted(
        f"{dataset}/{attn}_{size}" for attn in ("diff", "plain") for size in sizes
    )
    first = parse_training(["--config", f"{dataset}/diff_10m"])
    for attn in ("diff", "plain"):
        for size, millions in sizes.items():
            config = parse_training(["--config", f"{dataset}/{attn}_{size}"])
            assert config.model.attn == ("plain" if attn == "plain" else "model")
            assert config.model.keyword_arguments.get("head_norm", False) == (attn == "diff")
            with torch.device("meta"):
                model = timm.create_model(
                    config.model.model, attn=attn, num_classes=classes, **config.model.keyword_arguments
                )
            count = sum(p.numel() for p in model.parameters()) / 1e6
            assert count == pytest.approx(millions, abs=0.015)
            assert attn == "plain" or round(count, 2) == millions
            assert config.optim == first.optim
            assert config.data == first.data
    optim = first.optim
    assert (optim.opt, optim.warmup_steps, optim.keep_weights) == ("adamw", 500, "last")
    assert first.model.dropout == 0.2
    expected = {"cifar100": (1e-4, 512, 50), "bach": (3e-4, 64, 100)}[dataset]
    assert (optim.lr, optim.batch_size, optim.epochs) == expected
    assert (first.data.augment, optim.label_smoothing, optim.mixup, optim.cutmix) == ("none", 0.0, 0.0, 0.0)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_the_balanced_preset_has_the_parameters_of_version_2(dataset):
    def count(name):
        config = parse_training(["--config", f"{dataset}/{name}"])
        attn = {"diff": "diff", "diff_v2": "diff_v2"}.get(name, "plain")
        with torch.device("meta"):
            model = timm.create_model(config.model.model, attn=attn, num_classes=10, **config.model.keyword_arguments)
        return sum(p.numel() for p in model.parameters())

    assert count("balanced") == pytest.approx(count("diff_v2"), rel=0.02)
    assert count("plain") == pytest.approx(count("diff"), rel=0.01)


def test_presets_in_folders_are_named_with_their_folder():
    assert {name.partition("/")[0] for name in preset_names() if "/" in name} == {
        "bach",
        "cifar10",
        "cifar100",
        "mnist",
    }
    assert presets_of_folder("cifar1") == presets_of_folder("mnist_nano") == []
