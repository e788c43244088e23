"""The run folder: what it contains, also after a crash."""

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch
import yaml

from diffvit_timm.cli.parser import parse_options
from diffvit_timm.errors import InputError
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.run_folder import RunFolder, environment


def config(output="auto", dataset="data", **kwargs):
    return TrainConfig.from_flat(dataset, "tiny", output=str(output), **kwargs)


def test_config_yaml_is_a_preset_that_repeats_the_run(tmp_path):
    asked = config(lr=1e-5, img_size=(96,), model_kwargs=("in_chans=1",), pretrained=False, mixup=0.8)
    RunFolder(tmp_path / "run", asked)
    assert parse_options(TrainConfig, ["--config", str(tmp_path / "run" / "config.yaml")]) == asked
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["lr"] == 1e-5


def test_environment_json_says_what_ran_where(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/recipes/finetune_pets.py", "--output", "my run"])
    RunFolder(tmp_path / "run", config())
    written = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert written == {**environment(), "dataset_is_folder": False}
    RunFolder(tmp_path / "run", config(dataset=str(tmp_path)))
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["dataset_is_folder"]
    assert written["command"] == "finetune_pets.py --output 'my run'"
    assert written["packages"]["timm"] == metadata.version("timm")
    assert written["packages"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert written["cpus"] >= 1


def test_metrics_have_one_json_row_per_line_at_once(tmp_path):
    run = RunFolder(tmp_path / "run", config())
    rows = [{"step": 1, "train_loss": 0.5}, {"epoch": 1.0, "lambda": [0.1, 0.2]}]
    for count, row in enumerate(rows, start=1):
        run.log(**row)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows[:count]
    assert run.rows == rows


def test_best_contains_the_last_saved_model_with_its_class_names(tmp_path, tiny_model):
    run, model, images = RunFolder(tmp_path / "run", config()), tiny_model().eval(), torch.randn(2, 3, 16, 16)
    run.save_best(model, ["cat", "dog", "owl"])
    torch.nn.init.normal_(model.head.weight)
    run.save_best(model, ["cat", "dog", "owl"])
    loaded = timm.create_model(f"local-dir:{tmp_path}/run/best", pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))
    assert list(loaded.pretrained_cfg["label_names"]) == ["cat", "dog", "owl"]
    assert not (tmp_path / "run" / "best.old").exists()
    assert not (tmp_path / "run" / "best.new").exists()


def test_a_kill_between_the_renames_loses_no_best(tmp_path, tiny_model):
    RunFolder(tmp_path / "run", config()).save_best(tiny_model(), ["cat", "dog", "owl"])
    (tmp_path / "run" / "best").rename(tmp_path / "run" / "best.old")
    RunFolder(tmp_path / "run", config())
    assert {path.name for path in (tmp_path / "run" / "best").iterdir()} == {
        "model.safetensors",
        "config.json",
        "SHA256SUMS",
    }


def test_a_row_that_cannot_be_written_is_one_error(tmp_path):
    run = RunFolder(tmp_path / "run", config())
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"^metrics\.jsonl cannot be written to .*free some space"):
        run.log(step=1)


def test_a_crash_while_saving_leaves_the_last_best_weights_complete(tmp_path, tiny_model, monkeypatch):
    run, model = RunFolder(tmp_path / "run", config()), tiny_model()
    run.save_best(model, ["cat", "dog", "owl"])
    before = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()

    def full_disk(*args, **kwargs):
        (Path(args[1]) / "model.safetensors").write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    torch.nn.init.normal_(model.head.weight)
    with monkeypatch.context() as patch:
        patch.setattr("diffvit_timm.training.run_folder.save_pretrained", full_disk)
        with pytest.raises(InputError, match=r"best/ cannot be written .*No space left.*MiB free.*`resume="):
            run.save_best(model, ["cat", "dog", "owl"])
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == before
    run.save_best(model, ["cat", "dog", "owl"])  # and the next one replaces both
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() != before
    assert not (tmp_path / "run" / "best.new").exists()
    shutil.rmtree(tmp_path / "run")
