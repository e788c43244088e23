"""The picture of predictions at the end of a training: which test images it shows, and what it says of them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from diffvit_timm.inspection.accuracy import Accuracy
from diffvit_timm.training.predictions import choose_images, draw_predictions

NAMES = ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("wrong", "right", "shown"),
    [(100, 100, (8, 8)), (3, 100, (3, 13)), (100, 2, (14, 2)), (0, 100, (0, 16)), (100, 0, (16, 0)), (2, 3, (2, 3))],
)
def test_half_of_the_images_are_wrong_where_there_are_enough(wrong, right, shown):
    is_right = np.random.default_rng(1).permutation(np.arange(wrong + right) < right)
    chosen = choose_images(is_right)
    assert tuple(map(len, chosen)) == shown
    assert not is_right[chosen[0]].any()
    assert is_right[chosen[1]].all()
    assert all(len(set(indices)) == len(indices) for indices in chosen)
    assert all(np.array_equal(one, two) for one, two in zip(chosen, choose_images(is_right), strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_says_what_the_network_predicts(splits, tiny_model, tmp_path, saved_figures, channels):
    model, labels = tiny_model(in_chans=channels), np.array(splits.test["label"])
    torch.nn.init.normal_(model.head.weight)
    predicted = np.zeros_like(labels)
    test = Accuracy.of(predicted, labels, np.zeros(len(labels)))
    path = tmp_path / "predictions.png"
    draw_predictions(model, splits.test, NAMES, test, path, "tiny, differential attention, on animals", Accelerator())
    (figure,) = saved_figures
    title, chosen = figure.get_suptitle().replace("\n", " "), "Drawn at random: 10 of the 12 wrong and 6 of the 6 right"
    assert "tiny, differential attention, on animals: 33.33% of 18 test images are right" in title
    assert chosen in title
    assert sum(bool(axis.images) for axis in figure.axes) == 16
    shares = [float(text.get_text().split()[-1].rstrip("%")) for axis in figure.axes for text in axis.texts]
    assert len(shares) == 16 * 3
    assert np.allclose(np.reshape(shares, (16, 3)).sum(axis=1), 100, atol=1.5)
    assert path.is_file()
