"""recipes/train_small_clip.py trains a CLIP that `diffvit compare clip` takes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from diffvit_timm.cli import main
from diffvit_timm.cli.console import run

RECIPE = Path(__file__).parents[2] / "recipes" / "train_small_clip.py"


@pytest.fixture(scope="module")
def recipe():
    """The recipe as a module."""
    spec = importlib.util.spec_from_file_location(RECIPE.stem, RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[RECIPE.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[RECIPE.stem]


def train(recipe, *words):
    run(recipe.Options, recipe.main, [str(word) for word in words])


def test_a_small_clip_is_trained_saved_and_asked(recipe, image_folder, tmp_path, capsys):
    folder = tmp_path / "clip"
    train(recipe, "--dataset", image_folder, "--epochs", 2, "--batch-size", 8, "--output", folder)
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 32
    assert result["loss"] < 5
    words = (
        "compare", "clip", "--clip", folder, "--convert", "calibrated", "--calibration-images", 8, "--images", 9,
        "--dataset", image_folder, "--output", tmp_path / "out"
    )  # fmt: skip
    main([str(word) for word in words])
    assert [row["images"] for row in json.loads(capsys.readouterr().out)["rows"]] == [9, 9]


def test_pairs_of_one_class_are_all_right_in_the_contrastive_loss(recipe):
    loss = recipe.contrastive_loss
    eye = torch.eye(4)
    apart = loss(eye, eye, torch.arange(4), torch.tensor(100.0))
    assert apart < 1e-6
    images = eye[[0, 0, 1]]
    together = loss(images, images, torch.tensor([5, 5, 7]), torch.tensor(100.0))
    torch.testing.assert_close(together, torch.tensor(2 / 3 * 0.6931472), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr", "0"], "error: --lr 0.0 must be above 0\n"),
        (["--epochs", "1", "--batch-size", "64"], "error: --epochs 1 is a single update of --batch-size 64: "),
        (["--dataset", "nowhere/images"], "error: --dataset nowhere/images is not"),
        (["--learning-rate", "1"], "error: --learning-rate is not an option of this command: did you mean --lr?\n"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(recipe, image_folder, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        train(recipe, "--dataset", image_folder, "--output", tmp_path / "clip", *words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines(keepends=True)[-1].startswith(message)
    assert not (tmp_path / "clip").exists()
