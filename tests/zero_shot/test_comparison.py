"""Classifiers of a dataset: CLIP knows every class, a network of ImageNet only some; their tables and pictures."""

import json

import numpy as np
import pytest
import timm
import torch

from diffvit_timm.errors import InputError
from diffvit_timm.zero_shot.clip import load_clip
from diffvit_timm.zero_shot.comparison import (
    accuracy_rows,
    clip_classifier,
    convert_clip,
    draw_disagreement,
    split_logits,
    supervised_classifier,
)

TEMPLATES = ("a photo of a {}.",)


@pytest.fixture
def clip(clip_folder):
    return load_clip(str(clip_folder))


def test_clip_knows_every_class_and_a_mirrored_tower_gives_the_same_logits(clip, splits):
    converted = convert_clip(clip, "mirror", splits.train)
    logits = []
    for one in (clip, converted):
        classifier = clip_classifier(one, splits.class_names, TEMPLATES)
        assert classifier.known.all()
        logits.append(split_logits(classifier, splits.test, batch_size=7))
    assert logits[0].shape == (18, 3)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-3)


def test_the_calibration_takes_no_more_images_than_there_are(clip, splits, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "diffvit_timm.zero_shot.comparison.convert_tower",
        lambda clip, method, images: seen.append(images if images is None else sum(map(len, images))),
    )
    for method, count in (("calibrated", 1000), ("calibrated", 5), ("svd", 5)):
        convert_clip(clip, method, splits.train, count, batch_size=4)
    assert seen == [32, 5, None]


def test_a_trained_network_is_in_evaluation_mode_and_knows_the_classes_by_its_label_names(tiny_model, splits):
    model = tiny_model(drop_rate=0.5)
    model.pretrained_cfg["label_names"] = ["owl", "cat", "dog"]  # in another order than the dataset
    classifier = supervised_classifier(model.train(), "net", splits.class_names)
    assert not model.training
    assert (classifier.name, classifier.in_chans, classifier.known.tolist()) == ("net", 3, [True] * 3)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(classifier.classify(images), model(images)[:, [1, 2, 0]])


def test_a_class_that_a_network_does_not_know_has_no_probability(splits):
    model = timm.create_model("test_vit", num_classes=1000)
    classifier = supervised_classifier(model, "net", splits.class_names, {"cat": [281, 282], "dog": [207]})
    assert classifier.known.tolist() == [True, True, False]
    assert np.isneginf(split_logits(classifier, splits.test)[:, 2]).all()
    with pytest.raises(InputError, match="none of the classes"):
        supervised_classifier(model, "net", splits.class_names)


def test_the_rows_have_the_accuracies_of_the_logits():
    logits = {"right": 9.0 * np.eye(6), "first": np.tile(np.arange(6.0)[::-1], (6, 1))}
    right, first = accuracy_rows(logits, np.arange(6))
    assert (right["model"], right["images"], right["top1"], right["top5"]) == ("right", 6, 1.0, 1.0)
    assert (first["top1"], first["top5"]) == (pytest.approx(1 / 6), pytest.approx(5 / 6))
    assert first["mean_per_class"] == pytest.approx(1 / 6)
    assert 0 < first["low"] < 1 / 6 < first["high"] < 1


def test_pictures_show_images_that_only_one_classifier_gets_right(splits, tmp_path, saved_figures):
    labels = np.array(splits.test["label"])
    good = 5.0 * np.eye(3)[labels]  # (18, 3)
    bad = good.copy()
    bad[:7] = -bad[:7]
    logits = {"good": good, "middle": good, "bad": bad}
    result = draw_disagreement(logits, labels, splits.test, ["a", "b", "c"], "18 images", tmp_path, shown=2)
    assert result["alone_right"] == {"good": 7, "bad": 0}
    assert result["agreement"][0] == [1.0, 1.0, pytest.approx(11 / 18)]
    json.dumps(result)
    assert {path.name for path in tmp_path.iterdir()} == {
        "agreement.png", "first-alone-right.png", "last-alone-right.png"
    }  # fmt: skip
    _, first, last = saved_figures
    assert first.get_suptitle() == "good right and bad wrong: 7 of 18 images"
    assert len(first.axes) == 2 * 3  # two images, each with the classes of both
    assert last.get_suptitle() == "bad right and good wrong: 0 of 18 images"
