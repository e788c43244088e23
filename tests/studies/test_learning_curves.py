"""Learning curves: what is read from a run, and what the pictures show of it."""

import json

import pytest

from diffvit_timm.studies.learning_curves import LearningCurve, plot_accuracies, plot_losses, read_losses


def curve(name, attn="diff", dataset="digits", parameters=10, accuracy=0.5, points=4):
    losses = [(update, 2.0 / update) for update in range(1, points + 1)]
    return LearningCurve(name, dataset, attn, parameters, accuracy, {"train_loss": losses, "val_loss": losses[1::2]})


def test_the_losses_of_a_run_are_read_with_their_updates(tmp_path):
    rows = [
        {"step": 1, "epoch": 0.5, "train_loss": 2.0, "lr": 0.1}, {"step": 1, "epoch": 0.5, "val_loss": 1.9},
        {"step": 2, "epoch": 1.0, "train_loss": 1.5, "lr": 0.1}, {"step": 2, "val_loss": 1.8, "lambda": []},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_losses(tmp_path) == {"train_loss": [(1, 2.0), (2, 1.5)], "val_loss": [(1, 1.9), (2, 1.8)]}


def test_every_dataset_has_a_panel_and_every_run_a_line_with_its_name(tmp_path, saved_figures):
    plot_losses([curve("a"), curve("_b"), curve("c", dataset="cats")], "train_loss", tmp_path / "x.png", "Loss of all")
    left, right = saved_figures[0].axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", " _b"]
    assert (left.get_title(), right.get_title(), left.get_xlabel()) == ("digits", "cats", "Batches")
    assert left.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0], [3, 2 / 3], [4, 0.5]]
    assert saved_figures[0].get_suptitle() == "Loss of all"


def test_a_long_curve_is_drawn_pale_with_its_mean_over_it(tmp_path, saved_figures):
    plot_losses([curve("a", points=200)], "train_loss", tmp_path / "x.png", "Loss")
    pale, mean = saved_figures[0].axes[0].lines
    assert (len(pale.get_xdata()), pale.get_alpha()) == (200, 0.25)
    assert mean.get_xydata()[-1].tolist() == [200, pytest.approx(sum(2 / i for i in range(197, 201)) / 4)]


def test_accuracies_are_in_percent_over_millions_of_parameters_with_a_line_per_attention(tmp_path, saved_figures):
    curves = [curve(f"{attn}{size}", attn, parameters=size * 10**6, accuracy=size / 100)
              for attn in ("plain", "diff") for size in (25, 10, 50)]  # fmt: skip
    plot_accuracies(curves, tmp_path / "x.png", "Accuracy")
    axis = saved_figures[0].axes[0]
    assert [line.get_label() for line in axis.lines] == ["diff", "plain"]
    assert axis.lines[0].get_xydata().tolist() == [[10, 10], [25, 25], [50, 50]]
