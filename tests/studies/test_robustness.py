"""Accuracy under corruptions: the same images for all networks, each decoded once, and differences paired by image."""

import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from diffvit_timm.data.loading import image_batches, model_data_config
from diffvit_timm.errors import InputError
from diffvit_timm.studies import robustness
from diffvit_timm.studies.robustness import (
    CLEAN,
    MEAN,
    Condition,
    Outcomes,
    conditions,
    measure_robustness,
    robustness_rows,
)
from diffvit_timm.studies.robustness_figures import plot_corruptions, plot_robustness

LISTED = conditions(("contrast", "gaussian_noise"), (1, 5))


def test_the_conditions_are_clean_and_every_corruption_at_every_severity():
    assert LISTED == [CLEAN, ("contrast", 1), ("contrast", 5), ("gaussian_noise", 1), ("gaussian_noise", 5)]
    assert len(conditions()) == 1 + 11 * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_clean_images_are_classified_as_in_evaluation(tiny_model, splits, channels):
    model = tiny_model(in_chans=channels)
    outcomes = measure_robustness({"net": model}, splits.test, LISTED)["net"]
    with torch.inference_mode():
        logits = torch.cat([model.eval()(batch) for batch in image_batches(model, splits.test)])
    labels = torch.tensor(splits.test["label"])
    np.testing.assert_array_equal(outcomes.right[0], logits.argmax(1) == labels)
    np.testing.assert_allclose(outcomes.confidences[0], logits.softmax(1).amax(1), rtol=1e-4)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(outcomes.losses[0], losses, rtol=1e-4)
    assert outcomes.right.shape == outcomes.losses.shape == (5, 18)
    assert (np.abs(outcomes.losses[1:] - outcomes.losses[:1]) > 1e-4).any(axis=1).all()


def test_the_result_depends_neither_on_the_order_nor_on_the_batches(tiny_model, splits, monkeypatch):
    model, count = tiny_model().train(), len(splits.test)
    first = measure_robustness({"net": model}, splits.test, LISTED)["net"]
    monkeypatch.setattr(robustness, "BATCH_SIZE", 7)
    monkeypatch.setattr(robustness, "FORWARD_SIZE", 3)
    other = measure_robustness({"net": model}, splits.test.select(range(count - 1, -1, -1)), LISTED)["net"]
    np.testing.assert_array_equal(first.right, other.right[:, ::-1])
    np.testing.assert_allclose(first.losses, other.losses[:, ::-1], rtol=1e-4)
    assert model.training


def test_an_image_is_decoded_once_for_all_networks_and_corrupted_once_per_crop(tiny_model, splits, monkeypatch):
    decoded, corrupted = [], []
    decode, corrupt = robustness.decode_image, robustness.corrupt
    monkeypatch.setattr(robustness, "decode_image", lambda *args: decoded.append(1) or decode(*args))
    monkeypatch.setattr(robustness, "corrupt", lambda *args: corrupted.append(args[0].shape) or corrupt(*args))
    models = {
        "diff": tiny_model(),
        "plain": tiny_model(attn="plain"),
        "large": tiny_model(img_size=32),
        "grey": tiny_model(in_chans=1),
    }
    outcomes = measure_robustness(models, splits.test, LISTED)
    assert len(decoded) == len(splits.test)
    assert len(corrupted) == 3 * len(splits.test) * 4
    assert set(corrupted) == {(16, 16, 3), (32, 32, 3), (16, 16, 1)}
    for name, model in models.items():
        alone = measure_robustness({name: model}, splits.test, LISTED)[name]
        np.testing.assert_array_equal(alone.right, outcomes[name].right)
        np.testing.assert_array_equal(alone.losses, outcomes[name].losses)


def test_the_images_can_be_prepared_by_other_processes(tiny_model, splits):
    images = robustness._CorruptedImages(splits.test, [model_data_config(tiny_model())], LISTED)
    (views,), label = pickle.loads(pickle.dumps(images))[3]
    assert views.shape == (5, 3, 16, 16)
    assert label == splits.test[3]["label"]


def test_outputs_are_found_by_the_names_of_the_classes(tiny_model, splits):
    model, renamed = tiny_model(), tiny_model()
    order = [2, 0, 1]
    with torch.no_grad():
        for own, other in zip(renamed.head.parameters(), model.head.parameters(), strict=True):
            own.copy_(other[order])
    names = splits.class_names
    for net, labels in ((model, names), (renamed, [names[i] for i in order])):
        net.pretrained_cfg["label_names"] = labels
    outcomes = measure_robustness({"a": model, "b": renamed}, splits.test, LISTED, names)
    np.testing.assert_array_equal(outcomes["a"].right, outcomes["b"].right)
    np.testing.assert_allclose(outcomes["a"].losses, outcomes["b"].losses, rtol=1e-4)


def test_a_network_without_one_of_the_classes_is_refused(tiny_model, splits):
    model = tiny_model(num_classes=7)
    with pytest.raises(InputError, match="`models=net`: the 7 classes of the network are neither the dataset's 3"):
        measure_robustness({"net": model}, splits.test, LISTED, splits.class_names)
    imagenet = timm.create_model("test_vit", num_classes=1000)
    with pytest.raises(InputError, match="`models=net` does not know the class dragon: use a network that was"):
        measure_robustness({"net": imagenet}, splits.test, LISTED, ["goldfish", "dragon"])


def outcomes_of(*right):
    """Outcomes of confident predictions: one list of 0 and 1 per condition."""
    right = np.array(right, dtype=bool)
    return Outcomes(right, np.full(right.shape, 0.75, np.float32), np.full(right.shape, 0.5, np.float32))


def test_the_rows_are_those_worked_out_by_hand():
    listed = [CLEAN, Condition("fog", 1), Condition("fog", 5)]
    first = outcomes_of([1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0])
    second = outcomes_of([1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0])
    rows = robustness_rows({"a": first, "b": second}, listed)
    assert [(row["model"], row["corruption"], row["severity"]) for row in rows] == [
        (model, *condition) for model in "ab" for condition in (*listed, MEAN)
    ]
    assert [row["accuracy"] for row in rows] == [1, 0.5, 0.25, 0.375, 0.75, 0.75, 0.5, 0.625]
    assert [row["difference"] for row in rows] == [None] * 4 + [-0.25, 0.25, 0.25, 0.25]
    assert [row["nll"] for row in rows] == [0.5] * 8
    assert [row["ece"] for row in rows] == pytest.approx([0.25, 0.25, 0.5, 0.375, 0, 0, 0.25, 0.125])
    for row in rows:
        assert row["images"] == 4
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert rows[0]["low"] == pytest.approx(4 / (4 + 1.959964**2))  # Wilson's interval of 4 of 4


def test_the_interval_of_a_difference_is_narrow_if_the_networks_err_on_the_same_images():
    rng = np.random.default_rng(0)
    right = rng.random((2, 400)) < 0.6
    changed = right.copy()
    changed[1, :8] = ~changed[1, :8]
    shuffled = right[:, rng.permutation(400)]
    listed = [CLEAN, Condition("fog", 1)]
    rows = robustness_rows({"a": outcomes_of(*right), "b": outcomes_of(*changed), "c": outcomes_of(*shuffled)}, listed)
    same, paired, unpaired = rows[3], rows[4], rows[7]
    assert (same["difference"], same["difference_low"], same["difference_high"]) == (0, 0, 0)
    change = changed[1].astype(float) - right[1]
    half = 1.96 * change.std() / 20
    for bound, expected in (("low", change.mean() - half), ("high", change.mean() + half)):
        assert paired[f"difference_{bound}"] == pytest.approx(expected, abs=0.004)
    assert unpaired["difference_high"] - unpaired["difference_low"] > 0.1


def test_the_intervals_are_the_same_every_time():
    right = np.random.default_rng(0).random((3, 50)) < 0.5
    listed = [CLEAN, Condition("fog", 1), Condition("fog", 2)]
    both = {"a": outcomes_of(*right), "b": outcomes_of(*right[::-1])}
    assert robustness_rows(both, listed) == robustness_rows(both, listed)


def test_the_pictures_have_a_panel_per_corruption(tmp_path, saved_figures):
    right = np.random.default_rng(0).random((5, 20)) < 0.5
    rows = robustness_rows({"plain": outcomes_of(*right), "diff": outcomes_of(*right)}, LISTED)
    plot_robustness(rows, tmp_path / "robustness.png", "two networks")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    plot_corruptions(pixels, LISTED, tmp_path / "corruptions.png", "an image")
    accuracies, samples = saved_figures
    assert [axis.get_title() for axis in accuracies.axes if axis.axison] == ["contrast", "gaussian noise"]
    assert [len(axis.get_lines()) for axis in accuracies.axes if axis.axison] == [2, 2]
    assert [text.get_text() for text in accuracies.legends[0].get_texts()] == ["plain", "diff"]
    assert [axis.get_title() for axis in samples.axes[:3]] == ["clean", "severity 1", "severity 5"]
    for name in ("robustness", "corruptions"):
        with Image.open(tmp_path / f"{name}.png") as opened:
            assert min(opened.size) > 200
