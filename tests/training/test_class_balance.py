"""Classes of unequal size: balanced draws, the weighted loss, and a real training on digits of which half are rare."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from run_faults import small_run
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import DataLoader

from diffvit_timm.data.class_balance import class_weights, imbalance, reports_balanced, weighted_cross_entropy
from diffvit_timm.data.digits import digits_splits
from diffvit_timm.data.sampler import BalancedSampler
from diffvit_timm.errors import InputError
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.config import DataConfig, TrainConfig
from diffvit_timm.training.learner import Learner
from diffvit_timm.training.recipe import train
from diffvit_timm.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn_figures")

LABELS = [0] * 900 + [3] * 90 + [1] * 10  # class 2 has no images


def test_every_class_is_drawn_equally_often_and_every_image_of_a_class_too():
    drawn = [index % 1000 for epoch in range(40) for index in epoch_of(BalancedSampler(LABELS, seed=0), epoch)]
    classes = Counter(LABELS[image] for image in drawn)
    assert all(count == pytest.approx(40_000 / 3, rel=0.03) for count in classes.values())
    rare = Counter(image for image in drawn if LABELS[image] == 1)
    assert len(rare) == 10
    assert min(rare.values()) > 0.85 * max(rare.values())
    assert len({image for image in drawn if LABELS[image] == 0}) == 900


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_draws_depend_on_the_seed_and_the_epoch_only():
    first = epoch_of(BalancedSampler(LABELS, seed=5), 3)
    assert first == epoch_of(BalancedSampler(torch.tensor(LABELS), seed=5), 3)
    assert first != epoch_of(BalancedSampler(LABELS, seed=5), 4)
    assert first != epoch_of(BalancedSampler(LABELS, seed=6), 3)


def test_an_image_that_is_drawn_again_has_an_index_of_its_own_and_so_another_augmentation():
    drawn = epoch_of(BalancedSampler(LABELS), 0)
    assert len(drawn) == len(set(drawn)) == len(BalancedSampler(LABELS)) == 1000
    for image, count in Counter(index % 1000 for index in drawn).items():
        assert sorted(index // 1000 for index in drawn if index % 1000 == image) == list(range(count))


def test_two_processes_share_the_draws_of_one():
    def loader():
        return DataLoader(range(10**6), batch_size=8, sampler=BalancedSampler(LABELS, seed=1))

    def batches(count, index):
        part = prepare_data_loader(loader(), num_processes=count, process_index=index, put_on_device=False)
        part.set_epoch(2)
        return [batch.tolist() for batch in part]

    whole, first, second = batches(1, 0), batches(2, 0), batches(2, 1)
    assert whole[0::2] == first[: len(whole[0::2])]
    assert whole[1::2] == second[: len(whole[1::2])]


def test_the_weights_of_the_classes_are_those_of_scikit_learn():
    weights = class_weights(LABELS, 5)
    expected = compute_class_weight("balanced", classes=np.unique(LABELS), y=LABELS)
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist())
    assert weights[[2, 4]].tolist() == [0, 0]
    assert weights[LABELS].mean().item() == pytest.approx(1)
    assert imbalance(LABELS) == 90


def test_without_smoothing_the_weighted_loss_is_that_of_torch_and_with_it_each_image_counts_by_its_class():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(16, 4), torch.randint(0, 4, (16,)), torch.tensor([0.2, 1.0, 3.0, 9.0])
    expected = F.cross_entropy(logits, labels, weight=weights, reduction="none").mean()
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), expected)
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(
        weighted_cross_entropy(logits, labels, weights, 0.1), (weights[labels] * smoothed).mean()
    )
    mixed = 0.3 * F.one_hot(labels, 4) + 0.7 * F.one_hot(labels.flip(0), 4)  # as mixup makes them
    parts = [weighted_cross_entropy(logits, part, weights, 0.1) for part in (labels, labels.flip(0))]
    torch.testing.assert_close(weighted_cross_entropy(logits, mixed, weights, 0.1), 0.3 * parts[0] + 0.7 * parts[1])


@pytest.fixture(scope="module")
def rare_digits():
    """The digits 0 to 4 with about 87 training images each, and 5 to 9 with 4 each; the other splits are balanced."""
    splits = digits_splits()[1]
    labels = np.array(splits.train["label"][:])
    rows = [np.flatnonzero(labels == digit)[: 4 if digit > 4 else None] for digit in range(10)]
    return dataclasses.replace(splits, train=splits.train.select(np.sort(np.concatenate(rows))))


@pytest.fixture
def trained(rare_digits, tiny_model, tmp_path):
    """Function: options -> the result of a short training on the digits, and its trainer."""

    def run(class_balance, **options):
        defaults = dict(
            epochs=6, batch_size=32, opt="nmuon", lr=3e-2, layer_decay=1.0, augment="none", workers=0,
            warmup_epochs=1.0, checkpoint_every=0.0,
        )  # fmt: skip
        config = TrainConfig.from_flat("digits", "tiny", class_balance=class_balance, **{**defaults, **options})
        model = tiny_model(
            attn="plain", img_size=8, patch_size=4, in_chans=1, num_classes=10,
            pretrained_cfg_overlay=dict(mean=(0.5,), std=(0.5,), crop_pct=1.0),
        )  # fmt: skip
        folder = tmp_path / class_balance
        trainer = Trainer(config, make_accelerator(config.run, folder), model, rare_digits, folder)
        return trainer.fit(), trainer

    return run


def test_both_ways_find_more_of_the_rare_digits(trained, rare_digits, capsys):
    is_rare, found, imbalances = np.array(rare_digits.test["label"][:]) > 4, {}, set()
    for name in ("none", "sampler", "loss"):
        result, trainer = trained(name)
        found[name] = trainer.tested.is_right[is_rare].mean()
        imbalances.add(result["class_imbalance"])
    assert min(found["sampler"], found["loss"]) > found["none"] + 0.03
    assert imbalances == {87 / 4}
    shown = capsys.readouterr().err
    assert "times as many training images as the smallest (class_balance: none)" in shown
    assert shown.count("  balanced ") == 18  # after each epoch


def test_the_best_epoch_has_the_best_balanced_accuracy(trained, tmp_path):
    result, trainer = trained("loss", epochs=4)
    rows = [json.loads(line) for line in (tmp_path / "loss" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "val_loss" in row]
    best = max(rows, key=lambda row: (row["val_mean_per_class"], -row["val_loss"]))
    assert trainer.state.best == (best["val_mean_per_class"], -best["val_loss"])
    assert result["val_accuracy"] == best["val_accuracy"]


def test_accumulation_steps_do_not_change_a_weighted_update(trained, monkeypatch):
    losses = {}
    for steps in (1, 4):
        found = losses.setdefault(steps, [])
        update = Learner.update

        def noted(self, images, labels, step, update=update, found=found):
            found.append(update(self, images, labels, step).item())
            return torch.tensor(found[-1])

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "update", noted)
            trained("loss", opt="adamw", max_steps=3, grad_accum=steps, mixup=0.4)
    assert losses[1] == pytest.approx(losses[4], rel=1e-4)


class Killed(Exception):
    pass


def test_a_balanced_epoch_that_was_killed_continues_with_its_own_draws(image_folder, tmp_path, monkeypatch):
    options = dict(class_balance="sampler", checkpoint_every=0.25, log_every=1, epochs=2)
    expected = train(small_run(tmp_path / "whole", image_folder, **options), "train")
    update = Learner.update

    def stopped(self, images, labels, done):
        if done == 6:
            raise Killed
        return update(self, images, labels, done)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", stopped)
        with pytest.raises(Killed):
            train(small_run(tmp_path / "killed", image_folder, **options), "train")
    result = train(small_run(tmp_path / "killed", image_folder, **options), "train")
    assert result["test_loss"] == expected["test_loss"]
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("way", ["sampler", "loss"])
def test_a_stream_whose_classes_nobody_has_counted_is_refused(way):
    with pytest.raises(InputError, match=f"^`class_balance={way}` needs stored images: leave out `stream`$"):
        DataConfig("pets", class_balance=way, stream=64)


def test_two_ways_to_draw_the_images_are_refused():
    with pytest.raises(InputError, match=r"^`class_balance=sampler` and `repeated_augmentation` both draw the images"):
        DataConfig("pets", class_balance="sampler", repeated_augmentation=2)
    assert DataConfig("pets", class_balance="loss", repeated_augmentation=2).class_balance == "loss"


def test_the_balanced_accuracy_is_reported_if_it_matters():
    assert reports_balanced(1.2, "loss")
    assert reports_balanced(2.0, "none")
    assert not reports_balanced(1.9, "none")
    assert not reports_balanced(None, "none")
