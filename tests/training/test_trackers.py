"""Experiment trackers: one project, one named run per training, the same run on resume, with curves and pictures."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from diffvit_timm.errors import InputError
from diffvit_timm.training import trackers as module
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.recipe import train
from diffvit_timm.training.run_config import TRACKERS
from diffvit_timm.training.trackers import check_trackers, start_trackers

pytestmark = pytest.mark.usefixtures("undrawn_figures")

SHAPE = ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")


class Notebook(GeneralTracker):
    """A stand-in for W&B's tracker, which records what it receives."""

    name = "wandb"
    requires_logging_directory = False
    main_process_only = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.settings, self.rows, self.pictures, self.finished = None, [], {}, 0

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step, **kwargs):
        self.rows.append((step, values))

    def log_images(self, values, step, **kwargs):
        self.pictures |= {name: (step, pixels) for name, pixels in values.items()}

    def finish(self):
        self.finished += 1


@pytest.fixture
def begun(monkeypatch):
    """The runs that the stand-in for W&B has started, as (project, options, notebook)."""
    runs = []

    def init_trackers(self, project, config=None, init_kwargs=None):
        runs.append((project, init_kwargs, Notebook()))
        self.trackers = [runs[-1][2]]

    monkeypatch.setattr(Accelerator, "init_trackers", init_trackers)
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda names, _: names or [])  # without the packages
    for place in ("trackers", "recipe", "accelerator"):
        monkeypatch.setattr(f"diffvit_timm.training.{place}.check_trackers", lambda names: None)
    return runs


@pytest.fixture
def config(image_folder, tmp_path):
    return TrainConfig.from_flat(
        str(image_folder), "diffvit_tiny_patch16", pretrained=False, img_size=(16,), model_kwargs=SHAPE, epochs=2,
        batch_size=16, workers=0, augment="none", warmup_epochs=0.0, log_every=1, attention_every=1,
        trackers=("wandb",), tracker_project="animals", output=str(tmp_path / "mine"),
    )  # fmt: skip


def test_a_training_is_one_run_with_the_name_of_its_folder_its_curves_and_its_pictures(begun, config, tmp_path):
    result = train(config, "recipe")
    ((project, options, notebook),) = begun
    assert project == "animals"
    assert set(options) == {"wandb"}
    assert options["wandb"]["name"] == "mine"
    assert options["wandb"]["resume"] == "allow"
    assert notebook.settings["lr"] == config.optim.lr
    assert notebook.settings["model_kwargs"] == str(SHAPE)
    losses = [step for step, row in notebook.rows if "train_loss" in row]
    assert losses == [1, 2, 3, 4]
    accuracies = [row["val_accuracy"] for _, row in notebook.rows if "val_accuracy" in row]
    assert max(accuracies) == result["val_accuracy"]
    assert all(f"lambda/{i}" in row for _, row in notebook.rows if "val_accuracy" in row for i in (0, 1))
    assert {name: step for name, (step, _) in notebook.pictures.items()} == dict.fromkeys(
        ("attention", "training", "predictions"), 4
    )
    assert all(pixels.dtype == np.uint8 and pixels.shape[::3] == (1, 3) for _, pixels in notebook.pictures.values())
    assert notebook.finished == 1
    assert json.loads((tmp_path / "mine" / "trackers.json").read_text()) == {
        "animals": {"wandb": options["wandb"]["id"]}
    }


def test_a_resumed_training_continues_its_run_and_another_folder_begins_its_own(begun, config, tmp_path):
    for name in ("mine", "mine", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
        start_trackers(Accelerator(cpu=True), config, tmp_path / name, step=3)
    (_, first, one), (_, second, two), (_, third, three) = begun
    assert first["wandb"]["id"] == second["wandb"]["id"] != third["wandb"]["id"]
    assert (one.settings is None, two.settings is None, three.settings is None) == (False, True, False)
    start_trackers(Accelerator(cpu=True), config.replace(tracker_project="plants"), tmp_path / "mine", step=3)
    assert begun[-1][1]["wandb"]["id"] != first["wandb"]["id"]
    assert set(json.loads((tmp_path / "mine" / "trackers.json").read_text())) == {"animals", "plants"}


def test_several_trainings_of_one_process_are_several_runs(begun, config, tmp_path):
    for name in ("one", "two"):
        train(config.replace(output=str(tmp_path / name), epochs=1, attention_every=0), "recipe")
    assert [options["wandb"]["name"] for _, options, _ in begun] == ["one", "two"]
    assert [notebook.finished for _, _, notebook in begun] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(trackers=("comet_ml",)), "`trackers=comet_ml` was not tried here: choose among tensorboard, wandb, tra"),
        (dict(trackers=("wandb", "wandb")), "`trackers=wandb wandb` names a tracker twice"),
        (dict(tracker_project="x"), "`tracker_project=x` has no effect without `trackers`"),
        (dict(trackers=("wandb",), tracker_project="a/b"), "`tracker_project=a/b` must be a name of letters, digits"),
        (dict(trackers=("wandb",), eval_only=True), "`trackers=wandb`: `eval_only` tracks nothing: leave it out"),
    ],
)
def test_options_of_trackers_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        TrainConfig.from_flat("x", "y", **options)
    assert str(caught.value).startswith(message)


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(config, monkeypatch, tmp_path):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^`trackers=wandb` is not installed: pip install wandb mlflow$"):
        check_trackers(("wandb", "mlflow"))
    with pytest.raises(InputError, match=r"^`trackers=wandb` is not installed: pip install wandb$"):
        train(config, "recipe")
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_does_not_start_is_an_input_error(config, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("no server")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    with pytest.raises(InputError, match=r"^`trackers=wandb`: a tracker does not start: RuntimeError: no server$"):
        start_trackers(Accelerator(cpu=True), config, tmp_path, step=0)


# In a process of their own, because these packages start threads and processes that outlive a test.
TRAINING = """
import sys
from diffvit_timm.cli import main
shape = "--img-size 16 --model-kwargs patch_size=8 embed_dim=32 depth=1 num_heads=2 --batch-size 16 --max-steps 2"
words = "train --model diffvit_tiny_patch16 --no-pretrained --workers 0 --augment none --warmup-epochs 0 " + shape
main([*words.split(), "--dataset", sys.argv[1], "--output", sys.argv[2], "--trackers", *sys.argv[3:]])
"""


@pytest.fixture(scope="module")
def tracked(image_folder, tmp_path_factory):
    """Function: name of a tracker -> the folder of a training that all installed trackers have tracked."""
    place = tmp_path_factory.mktemp("tracked")
    installed = [name for name in TRACKERS if importlib.util.find_spec(name)]
    if installed:
        environment = {
            **os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": f"{place}/trackio", "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
        }  # fmt: skip
        command = [sys.executable, "-c", TRAINING, str(image_folder), str(place / "mine"), *installed]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=place)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["updates"] == 2  # nothing else is on stdout

    def folder(name):
        if name not in installed:
            pytest.skip(f"{name} is not installed")
        return place / "mine"

    return folder


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_that_is_named_begins_a_run(tracked, name):
    assert name in json.loads((tracked(name) / "trackers.json").read_text())["diffvit_timm"]


def test_tensorboard_gets_the_curves_and_the_pictures(tracked):
    folder = tracked("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "diffvit_timm"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_accuracy")] == [2]
    assert set(events.Tags()["images"]) == {"training", "predictions"}


def test_weights_and_biases_gets_a_named_run_of_the_project(tracked):
    folder = tracked("wandb")
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    identifier = json.loads((folder / "trackers.json").read_text())["diffvit_timm"]["wandb"]
    assert path.name == f"run-{identifier}.wandb"
    written = path.read_bytes()
    assert all(word in written for word in (b"diffvit_timm", b"mine", b"val_accuracy"))
    pictures = {picture.name.split("_")[0] for picture in path.parent.glob("files/media/images/*.png")}
    assert pictures == {"training", "predictions"}
