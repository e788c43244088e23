"""Outputs of networks in several precisions, and the accuracy on the classes that a network has."""

import pytest
import torch
from torch import nn

from diffvit_timm.studies import inference_speed
from diffvit_timm.studies.inference_speed import Candidate, compare_precisions

DATA_CONFIG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic",
               "crop_pct": 1.0}  # fmt: skip


def brightest_channel():
    """A network whose outputs are the means of the three colour channels, which are the classes of the images."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize(("indices", "accuracy"), [([[0], [1], [2]], 1.0), ([[0], [], [2]], 1.0), ([], None)])
def test_accuracy_counts_only_the_images_whose_class_the_network_has(splits, indices, accuracy):
    candidate = Candidate("net", brightest_channel(), DATA_CONFIG, True, indices, 0.0)
    row = compare_precisions([candidate], ["fp32"], splits.test, 1, "cpu")["net", "fp32"]
    assert row["accuracy"] == (None if accuracy is None else pytest.approx(accuracy))
    assert (row["agreement"], row["largest_difference"]) == (1.0, 0.0)


def test_noise_is_the_same_for_every_precision_and_an_embedding_has_no_agreement():
    candidate = Candidate("net", brightest_channel(), DATA_CONFIG, False, [], 0.0)
    rows = compare_precisions([candidate], ["fp32", "bf16"], None, 11, "cpu")
    assert 0 < rows["net", "bf16"]["largest_difference"] < 0.01
    assert rows["net", "bf16"]["agreement"] is None


def test_a_candidate_is_cast_as_a_copy():
    model = nn.Linear(2, 2)
    assert inference_speed._cast(model, "fp32") is model
    assert inference_speed._cast(model, "bf16").weight.dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
