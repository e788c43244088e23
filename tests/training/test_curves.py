"""The figure of a training shows the rows that were measured."""

import pytest
from PIL import Image

from diffvit_timm.training.curves import plot_training

UPDATES = [
    {"step": 2, "epoch": 0.5, "train_loss": 2.0, "lr": 0.1},
    {"step": 4, "epoch": 1.0, "train_loss": 1.5, "lr": 0.05},
    {"step": 8, "epoch": 2.0, "train_loss": 1.0, "lr": 0.0},
]
EPOCHS = [
    {"epoch": 1.0, "val_accuracy": 0.5, "val_loss": 1.7, "lambda": [0.05, 0.06, 0.07]},
    {"epoch": 2.0, "val_accuracy": 0.75, "val_loss": 1.2, "lambda": [0.1, 0.12, 0.14]},
]


@pytest.fixture
def drawn(tmp_path, saved_figures):
    """Function: rows -> the figure that was written, by the titles of its axes."""

    def draw(rows):
        plot_training(rows, tmp_path / "training.png", "tiny on pets")
        with Image.open(tmp_path / "training.png") as image:
            assert image.format == "PNG"
            assert image.size == (1200, 780)
            assert len(image.convert("L").getcolors(256)) > 10  # not a blank page
        return saved_figures[-1], {axis.get_title().split()[0]: axis for axis in saved_figures[-1].axes}

    return draw


def curves(axis):
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]


def test_every_curve_is_the_column_that_its_title_names(drawn):
    within = {"epoch": 1.5, "val_accuracy": 0.6, "val_loss": 1.4}
    figure, axes = drawn([*UPDATES[:2], EPOCHS[0], within, UPDATES[2], EPOCHS[1]])
    assert figure.get_suptitle() == "tiny on pets"
    assert curves(axes["Loss"]) == [([0.5, 1.0, 2.0], [2.0, 1.5, 1.0]), ([1.0, 1.5, 2.0], [1.7, 1.4, 1.2])]
    assert [text.get_text() for text in axes["Loss"].get_legend().get_texts()] == ["train", "val"]
    assert curves(axes["Validation"]) == [([1.0, 1.5, 2.0], [0.5, 0.6, 0.75])]
    assert curves(axes["Learning"]) == [([0.5, 1.0, 2.0], [0.1, 0.05, 0.0])]
    assert curves(axes["Lambda"]) == [([1.0, 2.0], pair) for pair in ([0.05, 0.1], [0.06, 0.12], [0.07, 0.14])]
    assert [text.get_text() for text in axes["Lambda"].get_legend().get_texts()] == ["block 0", "block 2"]
    assert axes["Lambda"].get_xlabel() == "Epoch"


def test_the_blocks_are_told_apart_by_shade(drawn):
    _, axes = drawn([*UPDATES, *EPOCHS])
    assert len({line.get_color() for line in axes["Lambda"].lines}) == 3


def test_a_plain_model_has_no_lambda_and_says_so(drawn):
    _, axes = drawn([*UPDATES, *({**row, "lambda": []} for row in EPOCHS)])
    assert not axes["Lambda"].lines
    assert [text.get_text() for text in axes["Lambda"].texts] == ["plain attention: no lambda"]


def test_a_run_of_one_block_and_one_epoch_has_a_figure_too(drawn):
    _, axes = drawn([UPDATES[0], {**EPOCHS[0], "lambda": [0.05]}])
    assert curves(axes["Lambda"]) == [([1.0], [0.05])]
