"""A finished run is trained for longer: where it continues, what it keeps, and what is refused."""

import json
import math
import shutil

import pytest
import torch
import yaml
from run_faults import small_run
from safetensors.torch import load_file

from diffvit_timm.errors import InputError
from diffvit_timm.training.learner import Learner
from diffvit_timm.training.recipe import train
from diffvit_timm.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("undrawn_figures")


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def first(image_folder, tmp_path_factory):
    """A finished run of two epochs of four updates."""
    folder = tmp_path_factory.mktemp("first") / "run"
    train(small_run(folder, image_folder, epochs=2, ema=0.5, log_every=1), "train")
    return folder


@pytest.fixture
def run(first, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(first, tmp_path / "run")


@pytest.fixture
def longer(image_folder):
    """Function: folder of a run, options -> train it for longer, by default to four epochs."""

    def start(folder, **options):
        options = {"epochs": 4, "ema": 0.5, "log_every": 1, **options}
        return train(small_run("auto", image_folder, resume=str(folder), **options), "train")

    return start


def killed_at(step, patch, start):
    """Call a function whose training stops before an update, as a kill does."""
    update = Learner.update

    def stopped(self, images, labels, done):
        if done == step:
            raise Killed
        return update(self, images, labels, done)

    with patch.context() as context:
        context.setattr(Learner, "update", stopped)
        with pytest.raises(Killed):
            start()


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(result):
    return {name: value for name, value in result.items() if "second" not in name and name != "output"}


def outcome(folder):
    return timeless(json.loads((folder / "result.json").read_text())), rows(folder)


def assert_same(one, other):
    assert outcome(one) == outcome(other)
    weights, others = (load_file(folder / "best" / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(weights[name], others[name]) for name in weights | others)


def test_a_longer_run_continues_the_log_and_the_result_and_keeps_the_first_result(run, longer, capsys):
    before, first_result = rows(run), (run / "result.json").read_text()
    result = longer(run)
    assert (result["epochs"], result["updates"], result["restarts"]) == (4, 16, [8])
    assert rows(run)[: len(before)] == before
    assert [row["step"] for row in rows(run) if "train_loss" in row] == list(range(1, 17))
    assert (run / "result-2-epochs.json").read_text() == first_result
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 4
    assert (
        "the run had ended there, so its schedule starts anew for the 8 added updates: 2 updates of warm-up to the "
        "learning rate 0.0005, then a cosine decay to zero"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("lr", [5e-4, 2e-4])
def test_the_added_epochs_have_a_warm_up_and_a_cosine_of_their_own(run, longer, lr):
    longer(run, lr=lr)
    rates = [row["lr"] for row in rows(run) if "train_loss" in row]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates[8:] == pytest.approx([lr * factor for factor in (1 / 3, 2 / 3, *cosine)])
    assert rates[:8] == pytest.approx([5e-4 * factor for factor in (1 / 3, 2 / 3, *cosine)])


def test_the_first_added_update_starts_from_the_last_weights_and_the_state_of_the_optimizer(run, longer, monkeypatch):
    (end,) = (run / "checkpoints").glob("*-step-000000008")
    saved = load_file(end / "model.safetensors")
    update, seen = Learner.update, {}

    def noted(self, images, labels, done):
        if done == 8:
            seen["weights"] = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
            seen["average"] = {name: tensor.clone() for name, tensor in self.ema.module.state_dict().items()}
            seen["steps"] = {int(state["step"]) for state in self.optimizer.state.values()}
        return update(self, images, labels, done)

    monkeypatch.setattr(Learner, "update", noted)
    longer(run)
    assert seen["steps"] == {8}
    assert all(torch.equal(tensor, saved[name]) for name, tensor in seen["weights"].items())
    assert all(torch.equal(tensor, saved[f"ema.{name}"]) for name, tensor in seen["average"].items())


@pytest.mark.parametrize("step", [8, 9, 13])
def test_a_longer_run_that_was_killed_continues_to_the_same_bits(run, first, longer, tmp_path, monkeypatch, step):
    best = load_file(run / "best" / "model.safetensors")
    killed_at(step, monkeypatch, lambda: longer(run, checkpoint_every=0.25))
    assert not (run / "result.json").exists()
    assert (run / "result-2-epochs.json").read_text() == (first / "result.json").read_text()
    if step < 12:  # no added epoch was evaluated
        assert all(
            torch.equal(tensor, best[name]) for name, tensor in load_file(run / "best/model.safetensors").items()
        )
    longer(run, checkpoint_every=0.25)
    whole = shutil.copytree(first, tmp_path / "whole")
    longer(whole, checkpoint_every=0.25)
    assert_same(run, whole)


def test_a_kill_between_the_new_options_and_the_rename_of_the_first_result_loses_nothing(
    run, first, longer, tmp_path, monkeypatch
):
    def killed(folder, options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("diffvit_timm.training.run_folder.keep_earlier_result", killed)
        with pytest.raises(Killed):
            longer(run)
    assert (run / "result.json").exists()
    longer(run)
    whole = shutil.copytree(first, tmp_path / "whole")
    longer(whole)
    assert_same(run, whole)


def test_a_run_is_trained_for_longer_twice(run, longer):
    longer(run, epochs=3)
    result = longer(run, epochs=4, lr=1e-4)
    assert (result["updates"], result["restarts"]) == (16, [8, 12])
    assert {path.name for path in run.glob("result*.json")} == {
        "result.json", "result-2-epochs.json", "result-3-epochs.json"
    }  # fmt: skip
    assert json.loads((run / "result.json").read_text())["epochs"] == 4
    again = longer(run, epochs=4, lr=1e-4)  # it is finished
    assert timeless(again) == json.loads(json.dumps(timeless(result)))


def test_better_weights_replace_the_best_ones_and_no_others_do(run, longer, monkeypatch):
    before = load_file(run / "best" / "model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_best", lambda *_: pytest.fail("worse weights were saved"))
        patch.setattr("timm.utils.ModelEmaV3.update", lambda *_: None)
        result = longer(run, lr=1e-30)  # neither the weights nor their average move, so no epoch is better
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(run / "best/model.safetensors").items())
    best = max((row["val_accuracy"], -row["val_loss"]) for row in rows(run) if "val_loss" in row)
    assert result["val_accuracy"] == best[0]


def test_the_last_weights_are_kept_of_a_run_that_keeps_the_last_ones(image_folder, longer, tmp_path):
    options = dict(keep_weights="last", ema=0.0)
    train(small_run(tmp_path / "run", image_folder, epochs=1, log_every=1, **options), "train")
    longer(tmp_path / "run", epochs=2, **options)
    (end,) = (tmp_path / "run" / "checkpoints").glob("*-step-000000008")
    last, best = load_file(end / "model.safetensors"), load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in best.items())


def test_a_run_that_ended_within_an_epoch_goes_on_within_it(image_folder, longer, tmp_path):
    train(small_run(tmp_path / "run", image_folder, max_steps=6, log_every=1, checkpoint_every=5.0), "train")
    result = longer(tmp_path / "run", epochs=3, max_steps=10, ema=0.0, checkpoint_every=0.25)
    assert (result["updates"], result["epochs"], result["restarts"]) == (10, 3, [6])
    epochs = [row["epoch"] for row in rows(tmp_path / "run") if "train_loss" in row]
    assert epochs == [step / 4 for step in range(1, 11)]


def test_a_run_that_patience_ended_gets_its_whole_patience_again(image_folder, longer, tmp_path):
    options = dict(lr=1e-30, patience=1, ema=0.0, log_every=1)
    assert train(small_run(tmp_path / "run", image_folder, epochs=9, **options), "train")["epochs"] == 2
    result = longer(tmp_path / "run", epochs=10, **options | {"patience": 3})
    assert (result["epochs"], result["restarts"]) == (5, [8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(epochs=1),
            r"`epochs=1`: .*run is finished after 2 epochs: .* give a larger number, which includes those",
        ),
        (dict(epochs=2, max_steps=8), "`max_steps=8`: .*run is finished after 8 updates"),
        (
            dict(epochs=4, weight_decay=0.1),
            "is a run with other options: `epochs=2` there, 4 here; `weight_decay=0.05`",
        ),
        (dict(epochs=2, lr=1e-3), r"is a run with other options: `lr=0\.0005` there, 0\.001 here"),
    ],
)
def test_a_length_that_is_not_longer_and_other_options_are_refused(run, longer, options, message):
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(InputError, match=message):
        longer(run, **options)
    assert sorted(path.name for path in run.rglob("*")) == before


def test_resume_auto_does_not_make_a_finished_run_longer_and_says_what_does(run, image_folder):
    with pytest.raises(InputError, match=r"`epochs=2` there, 4 here; .*; to train it for longer, pass `resume="):
        train(small_run(run, image_folder, epochs=4, ema=0.5, log_every=1), "train")


def test_without_the_checkpoint_of_its_end_a_run_is_a_model_to_start_from(run, longer):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match=f"has no checkpoint of its end: .* `model={run}` with another `output`"):
        longer(run)


def test_an_earlier_checkpoint_is_not_the_end(run, longer):
    earlier = min((run / "checkpoints").iterdir())
    with pytest.raises(InputError, match=f"is not the end of the run: give {run} to train it for longer"):
        longer(earlier)


def test_a_run_without_checkpoints_leaves_none(image_folder, tmp_path):
    train(small_run(tmp_path / "run", image_folder, epochs=1, checkpoint_every=0.0), "train")
    assert not (tmp_path / "run" / "checkpoints").exists()
