"""Trainings that choose a setting are not tested."""

import json

import pytest

from diffvit_timm.cli.summary import print_summary
from diffvit_timm.errors import InputError
from diffvit_timm.hub.publishing import _card_of_run
from diffvit_timm.hub.redaction import Records
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.recipe import train
from diffvit_timm.training.trainer import Trainer
from diffvit_timm.training.untested import UntestedTrainer

SHAPE = ("patch_size=8", "embed_dim=32", "depth=1", "num_heads=2")


@pytest.fixture
def options(image_folder, tmp_path):
    return TrainConfig.from_flat(
        str(image_folder), "diffvit_tiny_patch16", pretrained=False, img_size=(16,), model_kwargs=SHAPE, epochs=2,
        batch_size=8, workers=0, augment="none", output=str(tmp_path / "run")
    )  # fmt: skip


def test_an_untested_training_ends_with_the_weights_and_the_validation_of_a_tested_one(
    options, tmp_path, monkeypatch, capsys, undrawn_figures
):
    tested = train(options, "recipe")
    evaluate = Trainer.evaluate

    def without_test_images(self, loader, label, stops=True):
        assert loader is not self.test_loader
        return evaluate(self, loader, label, stops)

    monkeypatch.setattr(Trainer, "evaluate", without_test_images)
    result = train(options.replace(output=str(tmp_path / "untested")), "recipe", trainer=UntestedTrainer)
    assert result["val_accuracy"] == tested["val_accuracy"]
    assert {name for name in tested if name not in result} == {name for name in tested if name.startswith("test_")} - {
        "test_split"
    }
    written = {path.name for path in (tmp_path / "untested").iterdir()}
    assert {path.name for path in (tmp_path / "run").iterdir()} - written == {"training.png", "predictions.png"}
    weights = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("run", "untested")]
    assert weights[0] == weights[1]
    print_summary(result)
    assert "is a run that chose a setting, such as a learning rate. It was not tested." in capsys.readouterr().err
    with pytest.raises(InputError, match=r"untested` chose a setting, such as a learning rate, and was not tested, so"):
        _card_of_run(tmp_path / "untested", Records({}, {}, result, None), "me/x", [], "")
    assert json.loads((tmp_path / "untested" / "result.json").read_text())["val_accuracy"] == result["val_accuracy"]
