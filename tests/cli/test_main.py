"""diffvit: its list of commands, what it says about words that it does not know, presets, and the end of a training."""

import importlib
import os
import re
import subprocess
import sys

import pytest

import diffvit_timm
from diffvit_timm.cli import main
from diffvit_timm.cli.commands import train
from diffvit_timm.cli.main import COMMANDS
from diffvit_timm.cli.parser import parse_options, preset_names
from diffvit_timm.cli.summary import print_summary
from diffvit_timm.errors import InputError


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=str)
def test_without_a_command_it_lists_the_commands(words, capsys):
    main(words)
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: diffvit COMMAND [OPTIONS]\n")
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", printed.out, re.MULTILINE)
    assert printed.out.endswith(
        "diffvit train --demo converts and fine-tunes a small ViT on bundled images in about two minutes.\n"
    )
    assert max(map(len, printed.out.splitlines())) <= 120
    assert not printed.err


def test_the_version_is_that_of_the_package(capsys):
    main(["--version"])
    assert capsys.readouterr() == (f"diffvit_timm {diffvit_timm.__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_its_examples_and_options(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*name.split(), "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    module = importlib.import_module(f"diffvit_timm.cli.commands.{name.replace(' ', '_')}")
    assert module.__doc__.splitlines()[0] in printed
    assert f"diffvit {name} " in module.__doc__
    assert max(map(len, module.__doc__.splitlines())) <= 120
    assert "(default: " in printed or "(required)" in printed


PRESETS = (
    "(bach/, bach_10m, cifar10/, cifar100/, cifar100_10m, cifar10_fast, cifar10_full, cifar10_micro, demo, "
    "fashion_mnist, mnist/, mnist_nano, pets, pets_probe, scratch)"
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tran"], "tran is not a command of diffvit: did you mean train?"),
        (["compar", "clip"], "compar is not a command of diffvit: did you mean compare?"),
        (["finetune"], "finetune is not a command of diffvit: choose one of train, convert, predict, explain, "),
        (["--epochs", "3"], "--epochs is not a command of diffvit: choose one of train, "),
        (
            ["compare"],
            "diffvit compare needs a second word: conversions, coverage, clip, faithfulness, probes, attacks, ",
        ),
        (["benchmark", "--help"], "diffvit benchmark needs a second word: models, attention, training, gpu"),
        (["study", "scalling"], "diffvit study needs a second word: ablation, compare, presets, rates, scaling"),
        (["train", "--learning-rate", "1e-3"], "--learning-rate is not an option of diffvit train: did you mean --lr?"),
        (["train", "--image-size=224"], "--image-size is not an option of diffvit train: did you mean --img-size?"),
        (["train", "--epoch", "3"], "--epoch is not an option of diffvit train: did you mean --epochs?"),
        (["train", "--batch_sise=3"], "--batch-sise is not an option of diffvit train: did you mean --batch-size?"),
        (["predict", "--xyz"], "--xyz is not an option of diffvit predict: diffvit predict --help lists its options"),
        (
            ["train", "--config", "pet"],
            f"--config pet is neither a preset {PRESETS} nor a YAML file: did you mean pets?",
        ),
        (
            ["train", "--config", "cifar10"],
            f"--config cifar10 is neither a preset {PRESETS} nor a YAML file: did you mean cifar10/balanced or "
            "cifar10/diff or cifar10/diff_v2 or cifar10/plain?",
        ),
        (["train", "--config", "xyz"], f"--config xyz is neither a preset {PRESETS} nor a YAML file: check the name"),
        (["train", "--config"], f"--config needs a preset {PRESETS} or the path of a YAML file"),
        (["train", "--config", "pets", "--lr", "0"], "--lr 0.0 must be above 0"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_unknown_words_are_one_line_that_names_the_fix(refusal, words, message):
    assert refusal(*words).startswith(message)


def test_a_preset_with_an_unknown_option_is_one_line(refusal, tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("config: pets\nepoch: 3\n")
    message = refusal("train", "--config", preset)
    assert message == f"--config {preset}: epoch is not an option of diffvit train: did you mean epochs?"
    preset.write_text("config: pets\nmomentum: 0.9\nlr: 0.1\n")
    assert refusal("train", "--config", preset) == f"--config {preset}: momentum is not an option of diffvit train"


def test_a_preset_stands_on_top_of_another_one_and_options_on_top_of_both():
    options = parse_options(train.Options, ["--epochs", "2", "--config", "pets_probe"])
    assert options.train.data.dataset == "timm/oxford-iiit-pet"
    assert options.train.model.model == "diffvit_tiny_patch16.deit_in1k"  # of the preset pets
    assert (options.train.model.head_init, options.train.optim.lr) == ("probe", 1e-4)
    assert options.train.optim.epochs == 2


def test_the_help_of_a_training_names_every_preset_and_each_parses():
    for name in preset_names():
        folder, _, short = name.rpartition("/")
        assert re.search(rf"\b{short}\b", train.__doc__)
        assert not folder or re.search(rf"\b{folder}/", train.__doc__)
        options = parse_options(train.Options, ["--config", name])
        assert options.demo == (name == "demo")


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "diffvit_timm", "tran"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: tran is not a command of diffvit: did you mean train?\n"


@pytest.mark.parametrize("package", ["tyro", "matplotlib.figure", "sklearn"])
def test_a_missing_package_of_the_extra_is_one_line_that_names_the_extra(refusal, monkeypatch, package):
    def fail(*_):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(importlib, "import_module", fail)
    expected = f"diffvit compare clip needs {package.partition('.')[0]}: pip install 'diffvit_timm[train]'"
    assert refusal("compare", "clip") == expected


def test_a_missing_module_that_no_extra_has_is_a_bug(monkeypatch):
    def fail(*_):
        raise ModuleNotFoundError("No module named 'diffvit_timm.nowhere'", name="diffvit_timm.nowhere")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError):
        main(["train", "--demo"])


RESULT = {
    "output": "runs/pets", "attn": "diff", "conversion": None, "test_accuracy": 0.9, "test_interval_95": (0.85, 0.94),
    "test_images": 1561, "test_split": "test", "epochs": 4,
}  # fmt: skip
ACCURACY = "Test accuracy: 90.00% (95 % interval 85.00% to 94.00%; 1,561 images, split: test)."
NEXT = """\
The weights are in runs/pets/best, the curves in runs/pets/training.png, and test images with their predictions in \
runs/pets/predictions.png.
Next:
  diffvit predict IMAGE.jpg --model runs/pets
  diffvit explain IMAGE.jpg --model runs/pets
  diffvit push runs/pets NAME"""


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, [ACCURACY, "For the plain twin under the same options, add --attn plain.", NEXT]),
        ({"attn": "plain"}, [ACCURACY, NEXT]),
        (
            {"plain_twin_accuracy": 0.875, "plain_twin_interval_95": (0.83, 0.91)},
            [ACCURACY, "Plain twin, trained in the same way: 87.50% (83.00% to 91.00%).", NEXT],
        ),
        (
            {"attn": "diff_v2", "conversion": {"method": "mirror", "agreement": 0.9995}},
            [
                ACCURACY,
                "For the plain twin under the same options, add --attn plain.",
                "Before the training, the conversion (mirror) gave the source's top-1 class on 100.0%.",
                NEXT,
            ],
        ),
        ({"attn": "plain", "conversion": {"method": "svd", "agreement": None}}, [ACCURACY, NEXT]),
        ({"attn": "plain", "epochs": ...}, [ACCURACY]),  # an evaluation trains nothing, so there are no new weights
    ],
    ids=["alone", "plain", "twin", "conversion", "conversion without a head", "evaluation"],
)
def test_a_training_ends_with_its_result_in_words(capsys, changes, lines):
    result = {name: value for name, value in {**RESULT, **changes}.items() if value is not ...}
    print_summary(result)
    assert capsys.readouterr() == ("", "\n" + "\n".join(lines) + "\n")


def test_a_dry_run_has_no_result_in_words(capsys):
    print_summary({"dry_run": True, "seconds": 12.0})
    assert capsys.readouterr() == ("", "")


def test_an_option_that_is_refused_by_its_own_dataclass_names_its_parameter():
    with pytest.raises(InputError) as caught:
        parse_options(train.Options, ["--config", "pets", "--test-share", "1.5"])
    assert caught.value.parameter == "test_share"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_reader_that_leaves_ends_the_command_without_a_traceback(words):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "diffvit_timm", *words]
    process = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (process.returncode, process.stderr) == (1, "")


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "diffvit train needs --dataset and --model"),
        ("convert", "diffvit convert needs SOURCE and OUT"),
        (
            "train --dataset x --model y --attn foo",
            "invalid choice 'foo' for argument '--attn'. Expected one of ('model', ",
        ),
        ("train --dataset x --model y stray", "unrecognized options: stray"),
        ("train --dataset x --model y --lr", "missing value for argument '--lr'. Expected 1 values"),
        ("train --dataset x --model y --img-size --lr 1", "--img-size needs at least one value"),
        ("train --dataset x --model y --model-kwargs", "--model-kwargs needs at least one value"),
    ],
)
def test_a_value_that_does_not_parse_is_one_line(words, message, boxes, capsys, monkeypatch):
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", boxes)  # tyro draws no boxes if stdout is not UTF-8
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
    assert "needs at least" in message or "--help explains the options" in printed.err
