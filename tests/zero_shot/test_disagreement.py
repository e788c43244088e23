"""Agreement of classifiers, and the images that only one of them predicts correctly."""

import numpy as np
from PIL import Image

from diffvit_timm.zero_shot.disagreement import agreement, plot_agreement, plot_wins, top_k, wins


def test_agreement_wins_and_top_k_are_those_computed_by_hand():
    labels = np.array([0, 1, 2, 2])
    first, second = np.array([0, 1, 0, 1]), np.array([0, 2, 2, 1])
    np.testing.assert_array_equal(agreement({"a": first, "b": second}), [[1, 0.5], [0.5, 1]])
    first_wins, second_wins = wins(first, second, labels)
    assert (first_wins.tolist(), second_wins.tolist()) == ([1], [2])
    scores = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, -np.inf], [0.1, 0.2, 0.3]])
    assert top_k(scores, labels, 1) == 0.5
    assert top_k(scores, labels, 2) == 0.75
    assert top_k(scores, labels, 5) == 1.0


def test_figures_show_the_classes_and_the_numbers():
    figure = plot_agreement(np.array([[1, 0.25], [0.25, 1]]), ["a", "b"], "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["100.0%", "25.0%", "25.0%", "100.0%"]
    shares = {"clip": np.array([[0.1, 0.7, 0.2]]), "resnet": np.array([[0.8, 0.1, 0.1]])}
    figure = plot_wins([Image.new("RGB", (4, 4))], [1], shares, ["cat", "dog", "owl"], "title")
    assert figure.axes[0].get_title() == "dog"
    assert [axis.get_xlabel() for axis in figure.axes[1:]] == ["probability by clip", "probability by resnet"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["dog 70%", "owl 20%", "cat 10%"]
    assert plot_wins([], [], shares, ["cat"], "title").axes[0].texts[0].get_text() == "No images"
