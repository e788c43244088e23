"""Outputs of networks in several precisions, and the accuracy on the classes that a network has."""

import numpy as np
import pytest
import torch
from timm.data import create_transform
from torch import nn

from diffvit_timm.studies import inference_speed
from diffvit_timm.studies.inference_speed import Candidate, compare_precisions, load_candidate, time_candidates
from diffvit_timm.zero_shot.class_names import class_scores
from diffvit_timm.zero_shot.comparison import Classifier

SIZE = (3, 16, 16)
TRANSFORM = create_transform(SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)


def brightest_channel(indices, has_classes=True):
    """A network whose outputs are the means of the three colour channels, which are the classes of the images."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    score = lambda outputs: class_scores(outputs, indices)  # noqa: E731
    known = np.array([bool(own) for own in indices or []])
    classifier = Classifier("net", TRANSFORM, 3, network, score, known) if indices else None
    return Candidate("net", network, TRANSFORM, SIZE, has_classes, classifier, 0.0)


@pytest.mark.parametrize(("indices", "accuracy"), [([[0], [1], [2]], 1.0), ([[0], [], [2]], 1.0), (None, None)])
def test_accuracy_counts_only_the_images_whose_class_the_network_has(splits, indices, accuracy):
    row = compare_precisions([brightest_channel(indices)], ["fp32"], splits.test, 1, "cpu")["net", "fp32"]
    assert row["accuracy"] == (None if accuracy is None else pytest.approx(accuracy))
    assert (row["agreement"], row["largest_difference"]) == (1.0, 0.0)
    assert row["cosine"] == pytest.approx(1)


def test_images_of_unknown_classes_only_have_no_accuracy(splits):
    cats = splits.test.select(range(6))
    row = compare_precisions([brightest_channel([[], [1], [2]])], ["fp32"], cats, 1, "cpu")["net", "fp32"]
    assert row["accuracy"] is None


def test_noise_is_the_same_for_every_precision_and_an_embedding_has_only_a_cosine():
    rows = compare_precisions([brightest_channel(None, has_classes=False)], ["fp32", "bf16"], None, 11, "cpu")
    assert 0 < rows["net", "bf16"]["largest_difference"] < 0.01
    assert 0.99 < rows["net", "bf16"]["cosine"] < 1
    assert rows["net", "bf16"]["agreement"] is None


def test_a_candidate_is_cast_as_a_copy():
    model = nn.Linear(2, 2)
    assert inference_speed._cast(model, "fp32") is model
    assert inference_speed._cast(model, "bf16").weight.dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32


def test_the_speed_is_relative_to_the_same_network_in_fp32():
    fp32, bf16 = time_candidates([brightest_channel(None)], ["fp32", "bf16"], 2, 3, "cpu")
    assert (fp32["speed_low"], fp32["speed"], fp32["speed_high"]) == (1, 1, 1)
    assert 0 < bf16["speed_low"] <= bf16["speed"] <= bf16["speed_high"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_clip_with_weights_classifies_by_the_names_of_the_classes(clip_folder, splits, precision):
    candidate = load_candidate(f"clip:{clip_folder}", "small", splits.class_names, ("a photo of a {}.",))
    assert (candidate.input_size, candidate.has_classes) == ((3, 16, 16), False)
    rows = compare_precisions([candidate], ["fp32", precision], splits.test, 1, "cpu")
    assert 0.6 <= rows["small", precision]["agreement"] <= 1
    assert rows["small", precision]["cosine"] > 0.999
    assert 0 <= rows["small", precision]["accuracy"] <= 1
    without_names = load_candidate(f"clip:{clip_folder}", "small", [])
    assert compare_precisions([without_names], ["fp32"], None, 1, "cpu")["small", "fp32"]["agreement"] is None


def test_the_tower_without_the_texts_is_measured(clip_folder, splits):
    candidate = load_candidate(f"clip:{clip_folder}", "small", splits.class_names, ("{}",))
    assert not any("token_embedding" in name for name, _ in candidate.network.named_parameters())


def test_numbers_that_overflow_in_fp16_are_none():
    candidate = brightest_channel(None, has_classes=False)
    candidate.network.append(nn.Linear(3, 3))
    with torch.no_grad():
        candidate.network[-1].weight.fill_(6e4)
        candidate.network[-1].bias.fill_(6e4)
    half = compare_precisions([candidate], ["fp32", "fp16"], None, 64, "cpu")["net", "fp16"]
    assert (half["cosine"], half["largest_difference"]) == (None, None)
