"""diffvit train: the demo, presets, training from scratch, and a help that loads little."""

import json
import subprocess
import sys

import pytest
import yaml

from diffvit_timm.cli import main
from diffvit_timm.cli.commands.train import Options
from diffvit_timm.cli.parser import parse_options, preset_names
from diffvit_timm.training import demo as demo_module
from diffvit_timm.training.trainer import Trainer


class ShortTrainer(Trainer):
    """One epoch, whatever was asked."""

    def __init__(self, config, *args):
        super().__init__(config.replace(epochs=1, warmup_epochs=0.5), *args)


def test_the_demo_converts_and_fine_tunes_and_compares_and_ends_with_what_a_person_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_module, "Trainer", ShortTrainer)
    main(["train", "--demo", "--output", str(tmp_path / "demo")])
    printed = capsys.readouterr()
    result, said = json.loads(printed.out.splitlines()[-1]), printed.err
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"source", "diff", "plain"}
    assert result["conversion"]["method"] == "svd"
    assert {"source_accuracy", "converted_accuracy", "test_accuracy", "plain_twin_accuracy"} <= set(result)
    assert result["output"] == str(tmp_path / "demo" / "diff")
    assert "Diff-ViT, fine-tuned on" in said
    assert "Test accuracy:" in said
    assert "Plain twin, trained in the same way:" in said
    run = tmp_path / "demo" / "diff"
    assert f"The weights are in {run}/best" in said
    for command in (f"predict IMAGE.jpg --model {run}", f"explain IMAGE.jpg --model {run}", f"push {run} NAME"):
        assert f"diffvit {command}" in said


@pytest.mark.parametrize("option", ["--conversion calibrated", "--resume auto", "--dry-run"])
def test_the_demo_refuses_what_it_has_no_use_for(option, refusal, tmp_path):
    assert option in refusal("train", "--demo", *option.split(), "--output", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_parses(preset):
    parse_options(Options, ["--config", preset])


def test_small_images_train_from_scratch(diffvit, stream_folder, undrawn_figures, tmp_path):
    short = ["--dataset", stream_folder, "--epochs", "1", "--batch-size", "8", "--max-steps", "2"]
    result = diffvit("train", "--config", "scratch", *short, "--output", tmp_path / "run")
    assert result["model"] == "diffvit_micro_patch4_32"
    assert result["conversion"] is None
    assert (result["updates"], result["test_images"]) == (2, 30)


def test_help_loads_nothing_that_a_training_needs():
    heavy = ("datasets", "accelerate", "albumentations", "matplotlib", "sklearn", "scipy")
    code = (
        "import sys\nfrom diffvit_timm.cli import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--batch-size INT" in out
    for title in ("data options", "model options", "optim options", "run options"):
        assert f"─ {title} ─" in out
    assert out.splitlines()[-1] == "[]"


def test_resume_alone_continues_a_run_under_its_own_options_also_for_longer_and_after_a_move(
    diffvit, image_folder, undrawn_figures, tmp_path
):
    tiny = ["--model", "diffvit_nano", "--no-pretrained", "--img-size", 16, "--batch-size", 8, "--lr", 0.002]
    first = diffvit(
        "train", "--dataset", image_folder, *tiny, "--epochs", 1, "--workers", 0, "--output", tmp_path / "run"
    )
    (tmp_path / "run").rename(tmp_path / "moved")
    again = diffvit("train", "--resume", tmp_path / "moved")
    assert again["test_accuracy"] == first["test_accuracy"]
    longer = diffvit("train", "--resume", tmp_path / "moved", "--epochs", 2)
    assert (longer["epochs"], longer["restarts"]) == (2, [4])
    saved = yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())
    assert (saved["lr"], saved["img_size"], saved["epochs"]) == (0.002, [16], 2)


def test_resume_of_a_folder_without_a_run_still_asks_for_the_dataset(refusal, tmp_path):
    assert refusal("train", "--resume", tmp_path).startswith("diffvit train needs --dataset and --model")
