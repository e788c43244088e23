"""diffvit study rates: short trainings that differ in the learning rate only, and the command for the best of them."""

import json
import math
import os
import shlex
import signal

import pytest
import torch

from diffvit_timm.cli.training_options import parse_training, training_arguments
from diffvit_timm.errors import DivergedError
from diffvit_timm.studies.rates import Rate, best_rate, plot_rates
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.learner import Learner
from diffvit_timm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn_figures")

TRAINING = (
    "--model", "diffvit_tiny_patch16", "--no-pretrained", "--img-size", "16", "--model-kwargs", "patch_size=8",
    "embed_dim=32", "depth=1", "num_heads=2", "--batch-size", "8", "--workers", "0", "--augment", "none", "--config",
    "mnist_nano",
)  # fmt: skip


@pytest.fixture
def rates(diffvit, image_folder, tmp_path):
    """Function: more arguments -> the result of a study of three rates, in a folder of its own."""

    def study(*more):
        words = ("--dataset", image_folder, "--output", tmp_path / "rates", "--updates", "10", "--count", "3")
        return diffvit("study", "rates", *TRAINING, *words, *more)

    return study


def test_every_rate_starts_from_the_same_weights_with_the_same_batches_and_has_a_whole_schedule(rates, monkeypatch):
    update, seen = Learner.update, []

    def noted(self, images, labels, step):
        if step == 0:
            seen.append(([], [p.clone() for p in self.net.parameters()], images.clone()))
        loss = update(self, images, labels, step)
        seen[-1][0].append(self.last_lr)
        return loss

    monkeypatch.setattr(Learner, "update", noted)
    monkeypatch.setattr(Trainer, "test", None)  # test images choose nothing
    result = rates("--rates", "1e-4", "1e-2")
    assert [row["lr"] for row in result["rates"]] == [1e-4, 1e-3, 1e-2]
    (first, weights, images), *others = seen
    assert len(others) == 2
    cosine = [0.5 * (1 + math.cos(math.pi * step / 9)) for step in range(9)]
    assert first == pytest.approx([1e-4 * factor for factor in (0.5, *cosine)])
    for number, (rates_seen, start, batch) in enumerate(others, start=1):
        assert rates_seen == pytest.approx([10**number * rate for rate in first])
        assert all(torch.equal(one, other) for one, other in zip(start, weights, strict=True))
        assert torch.equal(batch, images)


def test_the_lowest_loss_gives_a_command_and_an_edge_is_said(rates, tmp_path, image_folder, capsys):
    result = rates("--rates", "1e-5", "1e-3")
    best = min(result["rates"], key=lambda row: row["val_loss"])
    assert result["best_lr"] == best["lr"]
    assert result["at_edge"] == (best["lr"] in (1e-5, 1e-3))
    words = shlex.split(result["command"])
    assert words[:2] == ["diffvit", "train"]
    given = parse_training([*TRAINING, "--dataset", str(image_folder), "--lr", str(best["lr"])])
    assert parse_training(words[2:]) == given
    assert {path.name for path in (tmp_path / "rates").iterdir()} == {"rates.json", "rates.png"}


def test_finished_rates_do_not_run_again_and_a_wider_range_adds_its_own(rates, monkeypatch):
    first = rates("--rates", "1e-4", "1e-2")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", None)  # no training may begin
        assert rates("--rates", "1e-4", "1e-2") == first
    fit, trained = Trainer.fit, []
    monkeypatch.setattr(Trainer, "fit", lambda self: (trained.append(self.config.optim.lr), fit(self))[1])
    wider = rates("--rates", "1e-2", "1")
    assert trained == [0.1, 1.0]
    assert [row["lr"] for row in wider["rates"]] == [1e-4, 1e-3, 1e-2, 0.1, 1.0]


def test_a_rate_that_diverges_has_no_loss_and_the_others_go_on(rates, monkeypatch, capsys):
    fit = Trainer.fit

    def diverging(self):
        if self.config.optim.lr > 5e-3:
            raise DivergedError("the loss is nan")
        return fit(self)

    monkeypatch.setattr(Trainer, "fit", diverging)
    result = rates("--rates", "1e-4", "1e-2")
    assert [row["val_loss"] is None for row in result["rates"]] == [False, False, True]
    assert result["best_lr"] < 5e-3


def test_a_study_whose_rates_all_diverge_is_one_error(refusal, image_folder, tmp_path, monkeypatch):
    def diverging(self):
        raise DivergedError("the loss is nan")

    monkeypatch.setattr(Trainer, "fit", diverging)
    words = ("--dataset", image_folder, "--output", tmp_path / "rates", "--updates", "10", "--count", "3")
    assert refusal("study", "rates", *TRAINING, *words) == "all trainings diverged: try smaller --rates than 1e-05"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rates 1e-2 1e-4", "--rates 0.01 0.0001 must be two numbers above 0, the smaller one first"),
        ("--rates 0 1", "--rates 0.0 1.0 must be two numbers above 0, the smaller one first"),
        ("--count 2", "--count 2 must be from 3 to 50"),
        ("--updates 9", "--updates 9 must be at least 10"),
        ("--resume auto", "--resume auto has no place in short trainings: leave it out"),
        ("--push-to-hub NAME", "--push-to-hub NAME has no place in short trainings: leave it out"),
        ("--val-share 0 --keep-weights last", "--val-share 0.0 would choose the rate on test images"),
    ],
)
def test_what_has_no_place_in_a_study_of_rates_is_refused(refusal, image_folder, words, message):
    assert refusal("study", "rates", *TRAINING, "--dataset", image_folder, *words.split()) == message


def test_a_folder_with_other_options_or_other_files_is_refused(rates, refusal, image_folder, tmp_path):
    rates("--rates", "1e-4", "1e-2")
    words = ("study", "rates", *TRAINING, "--dataset", image_folder, "--updates", "10", "--output")
    other = refusal(*words, tmp_path / "rates", "--weight-decay", "0.3")
    assert "has trainings with other options: weight_decay was 0.05 and is 0.3: choose another folder" in other
    content = json.loads((tmp_path / "rates" / "rates.json").read_text())
    content["options"].pop("progressive_sizes")  # a study that began before there was this option
    (tmp_path / "rates" / "rates.json").write_text(json.dumps(content))
    assert "progressive_sizes was [] and is [8]: choose another folder" in refusal(
        *words, tmp_path / "rates", "--progressive-sizes", "8"
    )
    rates("--rates", "1e-4", "1e-2")
    (tmp_path / "rates" / "rates.json").write_text('{"rows": []}')
    assert "is not the table of a study of rates: choose another --output" in refusal(*words, tmp_path / "rates")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert "is not empty" in refusal(*words, tmp_path / "full")


def test_losses_far_above_chance_are_cut_off(tmp_path, saved_figures):
    rows = [Rate(0.01, 0.5, 0.9, 1.0), Rate(0.1, 0.4, 0.9, 1.0), Rate(1.0, 99.0, 0.1, 1.0), Rate(10.0, None, None, 1.0)]
    assert best_rate(rows) == rows[1]
    plot_rates(rows, rows[1], math.log(10), "title", tmp_path / "rates.png")
    loss = saved_figures[0].axes[0]
    assert loss.get_ylim()[1] == pytest.approx(2 * math.log(10))
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["lowest loss: 0.1", "diverged"]


def test_arguments_of_a_configuration_make_it_again():
    config = TrainConfig.from_flat(
        "a folder", "vit", pretrained=False, img_size=(32, 64), model_kwargs=("depth=2", "a=b c"), opt="lion", lr=1e-5,
        compile=True, teacher="resnet18", trackers=("tensorboard",), val_every=3, attn="diff",
    )  # fmt: skip
    assert parse_training(training_arguments(config)) == config
    assert json.dumps(training_arguments(TrainConfig.from_flat("x", "y"))) == '["--dataset", "x", "--model", "y"]'


def test_a_study_that_a_signal_ends_keeps_its_rates_and_continues(rates, tmp_path, monkeypatch, capsys):
    update, count = Learner.update, [0]

    def signalled(self, images, labels, step):
        count[0] += 1
        if count[0] == 15:  # in the second training
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, images, labels, step)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", signalled)
        with pytest.raises(SystemExit) as stop:
            rates("--rates", "1e-4", "1e-2")
    assert stop.value.code == 128 + signal.SIGTERM
    assert "the same command continues the study" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "rates" / "rates.json").read_text())["rates"]) == 1
    assert len(rates("--rates", "1e-4", "1e-2")["rates"]) == 3
