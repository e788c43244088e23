"""A run continues only from what is undamaged, and with the same data, wherever they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from run_faults import DAMAGES, small_run

from diffvit_timm.errors import InputError
from diffvit_timm.training.learner import Learner
from diffvit_timm.training.recipe import train

pytestmark = pytest.mark.usefixtures("undrawn_figures")


class Killed(Exception):
    pass


def kill_at(step, config, monkeypatch):
    """Start a run and stop it at an update, as a kill does."""
    with monkeypatch.context() as patch:
        update = Learner.update

        def stopped(self, images, labels, done):
            if done == step:
                raise Killed
            return update(self, images, labels, done)

        patch.setattr(Learner, "update", stopped)
        with pytest.raises(Killed):
            train(config, "train")


@pytest.fixture(scope="module")
def first(image_folder, tmp_path_factory):
    """A run of three epochs of four updates that was killed in its third epoch, after two checkpoints."""
    folder = tmp_path_factory.mktemp("first") / "run"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(9, small_run(folder, image_folder), patch)
    return folder


@pytest.fixture
def data(image_folder, tmp_path):
    return shutil.copytree(image_folder, tmp_path / "data")


@pytest.fixture
def killed(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


def numbers(result):
    return {name: value for name, value in result.items() if "second" not in name}


def relative_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# One damage per file here; tests/campaign.py tries all of them.
@pytest.mark.parametrize(
    ("name", "damage", "way_out"),
    [
        ("config.yaml", "garbage", "start a new run with another `output`"),
        ("config.yaml", "missing", "choose a new folder"),
        ("metrics.jsonl", "other encoding", "delete it to continue without its rows"),
        ("best/config.json", "garbage", "start a new run with another `output`"),
        ("best/model.safetensors", "half", "start a new run with another `output`"),
        ("best/SHA256SUMS", "half", "start a new run with another `output`"),
        (
            "checkpoints/epoch-00002-step-000000008/model.safetensors",
            "empty",
            "continue from epoch-00001-step-000000004",
        ),
        ("checkpoints/epoch-00002-step-000000008/state.pt", "missing", "continue from epoch-00001-step-000000004"),
        ("checkpoints/epoch-00002-step-000000008/SHA256SUMS", "other encoding", "continue from epoch-00001-step-0000"),
    ],
)
def test_a_damaged_file_is_one_error_with_the_way_out_and_nothing_changes(killed, data, name, damage, way_out):
    DAMAGES[damage](killed / name)
    before = relative_files(killed)
    with pytest.raises(InputError, match=way_out):
        train(small_run(killed, data), "train")
    assert relative_files(killed) == before


def test_without_its_log_a_run_ends_with_the_same_weights(killed, data, tmp_path, capsys):
    config = small_run(killed, data)
    whole = shutil.copytree(killed, tmp_path / "whole")
    expected = train(config.replace(output=str(whole)), "train")
    (killed / "metrics.jsonl").unlink()
    DAMAGES["garbage"](killed / "environment.json")  # it is written anew
    result = train(config, "train")
    assert numbers(result) | {"output": ""} == numbers(expected) | {"output": ""}
    assert "metrics.jsonl is missing: the log and the curves begin at the checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_names_the_older_one_from_which_the_run_continues(killed, data):
    newest = max((killed / "checkpoints").iterdir())
    oldest = min((killed / "checkpoints").iterdir())
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=f"model.safetensors is damaged: .*; continue from {oldest.name}$"):
        train(small_run(killed, data), "train")
    result = train(small_run("auto", data, resume=str(oldest)), "train")
    assert result["updates"] == 12


def test_a_run_without_its_best_weights_does_not_go_on(killed, data):
    shutil.rmtree(killed / "best")
    with pytest.raises(InputError, match=f"^{killed}/best has the best weights so far and cannot be used"):
        train(small_run(killed, data), "train")


def test_a_dataset_that_moved_is_recognised_and_another_one_refused(killed, data, tmp_path, monkeypatch):
    moved = shutil.move(data, tmp_path / "job-2")
    kill_at(10, small_run(killed, moved), monkeypatch)
    assert yaml.safe_load((killed / "config.yaml").read_text())["dataset"] == str(moved)
    Image.new("RGB", (20, 20)).save(moved / "train" / "cat" / "cat-00.png")
    with pytest.raises(InputError, match=r"is a checkpoint of another run: training images: \w{16} there, \w{16} here"):
        train(small_run(killed, moved), "train")


def test_a_broken_test_image_stops_a_run_before_it_starts_and_taking_it_out_lets_it_go_on(killed, data, capsys):
    (data / "test" / "owl" / "owl-01.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"owl-01\.png does not decode"):
        train(small_run(killed, data), "train")
    (data / "test" / "owl" / "owl-01.png").unlink()
    result = train(small_run(killed, data), "train")
    assert (result["updates"], result["test_images"]) == (12, 17)
    assert "the test images have changed since the checkpoint" in capsys.readouterr().err


def test_a_finished_run_is_recognised_by_its_images(data, tmp_path, capsys):
    config = small_run(tmp_path / "run", data, epochs=1)
    result = train(config, "train")
    moved = shutil.move(data, tmp_path / "job-2")
    again = train(config.replace(dataset=str(moved)), "train")
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(result))
    assert "is already finished" in capsys.readouterr().err
    (Path(moved) / "test" / "owl" / "owl-00.png").unlink()
    with pytest.raises(InputError, match=f"^`dataset={moved}` has other images than `dataset={data}`"):
        train(config.replace(dataset=str(moved)), "train")


def test_a_run_that_was_killed_before_its_first_rename_starts_again(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml.new").write_text("dataset: ha")
    train(small_run(tmp_path / "run", data, epochs=1), "train")
    assert not (tmp_path / "run" / "config.yaml.new").exists()


def test_options_that_a_later_version_added_have_had_their_default_value(killed, data):
    config = yaml.safe_load((killed / "config.yaml").read_text())
    for name in ("teacher", "lambda_target", "val_every"):
        del config[name]
    (killed / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="`val_every=0` there, 3 here"):
        train(small_run(killed, data, val_every=3), "train")
    assert train(small_run(killed, data), "train")["updates"] == 12


def test_an_option_of_a_later_version_is_refused_by_its_name(killed, data):
    with (killed / "config.yaml").open("a") as file:
        file.write("warp_speed: 9\n")
    with pytest.raises(InputError, match="`warp_speed=9` there, None here"):
        train(small_run(killed, data), "train")


def test_another_number_of_threads_is_said(killed, data, capsys, monkeypatch):
    state = torch.load(max((killed / "checkpoints").iterdir()) / "state.pt", weights_only=True)
    threads = state["identity"]["CPU threads"]
    assert threads == torch.get_num_threads()
    monkeypatch.setattr("diffvit_timm.training.resume.torch.get_num_threads", lambda: 17)
    train(small_run(killed, data), "train")
    assert f"the run had {threads} CPU threads and has 17 now" in capsys.readouterr().err
