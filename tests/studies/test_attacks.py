"""Projected gradient descent: the allowed change, what it reaches, and accuracies paired by image."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from diffvit_timm.inspection.attacks import projected_gradient_descent
from diffvit_timm.studies.attacks import attack_networks, attack_rows, plot_attacks


def images_of(count=5, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 3 * 8 * 8, dtype=torch.float64))

    def forward(self, images):
        return images.flatten(1).double() @ self.weight.T


def test_no_pixel_changes_by_more_than_epsilon_or_leaves_the_range():
    images, epsilon = images_of(), 4 / 255
    changed = projected_gradient_descent(Linear(), images, torch.tensor([0, 1, 0, 1, 0]), epsilon, steps=7)
    assert (changed - images).abs().max() <= epsilon + 1e-6
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not changed.requires_grad


def test_a_linear_network_gets_the_largest_allowed_change_against_each_pixel():
    """There the best change is known: epsilon times the sign of the difference of the weights."""
    network, epsilon = Linear(), 2 / 255
    images, labels = images_of() * 0.8 + 0.1, torch.tensor([0, 0, 1, 1, 0])  # far from the ends of the range
    changed = projected_gradient_descent(network, images, labels, epsilon, steps=10)
    against = torch.stack([network.weight[1 - label] - network.weight[label] for label in labels])
    expected = images + epsilon * against.sign().view_as(images)
    assert torch.allclose(changed, expected.float(), atol=1e-6)


def test_a_seed_gives_the_same_change_and_more_steps_a_larger_loss(tiny_model):
    model = tiny_model().eval()
    nn.init.normal_(model.head.weight, std=0.2)
    images, labels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3

    def loss_after(steps):
        changed = projected_gradient_descent(model, images, labels, 8 / 255, steps, torch.Generator().manual_seed(0))
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(changed), labels).item()

    with torch.no_grad():
        clean = torch.nn.functional.cross_entropy(model(images), labels).item()
    assert loss_after(10) == loss_after(10)
    assert clean < loss_after(1) < loss_after(10)


def test_each_network_is_attacked_by_its_own_gradients_and_left_as_it_was(tiny_model, splits):
    models = {"plain": tiny_model(attn="plain"), "diff": tiny_model()}
    for model in models.values():
        nn.init.normal_(model.head.weight, std=0.5)
    before = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in models.items()}
    right = attack_networks(models, splits.test, [1, 64], steps=5)
    for name, model in models.items():
        assert right[name].shape == (18, 3)
        assert model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in model.state_dict().items())
        assert right[name][:, 2].mean() < right[name][:, 0].mean()
    rows = attack_rows(models, right, splits.test, [1, 64], steps=5)
    assert [(row["model"], row["epsilon"]) for row in rows] == [(n, e) for n in models for e in (0, 1, 64)]
    assert [row["lambda"] is None for row in rows] == [True] * 3 + [False] * 3
    assert [row["difference"] is None for row in rows] == [True] * 3 + [False] * 3
    gap = right["diff"][:, 1].mean() - right["plain"][:, 1].mean()
    assert rows[4]["difference"] == pytest.approx(gap)
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)


def test_the_unchanged_images_are_those_of_the_evaluation(tiny_model, splits):
    from diffvit_timm.data.loading import image_batches

    model = tiny_model().eval()
    with torch.no_grad():
        logits = torch.cat([model(images) for images in image_batches(model, splits.test)])
    right = attack_networks({"net": model}, splits.test, [1], steps=1)["net"]
    np.testing.assert_array_equal(right[:, 0], logits.argmax(1).numpy() == np.array(splits.test["label"]))


def test_a_network_of_other_classes_is_attacked_through_the_outputs_that_have_the_names(splits):
    torch.manual_seed(0)
    shape = dict(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **shape)
    model.pretrained_cfg["label_names"] = ["yak", "owl", "emu", "cat", "dog"]
    right = attack_networks({"net": model}, splits.test, [255], 3, class_names=["cat", "dog", "owl"])["net"]
    assert right.shape == (18, 2)


def test_the_picture_has_a_line_per_network(tmp_path, saved_figures):
    rows = [
        {"model": name, "epsilon": epsilon, "low": 0.2, "accuracy": 0.3, "high": 0.4}
        for name in ("plain", "diff")
        for epsilon in (0.0, 1.0, 4.0)
    ]
    plot_attacks(rows, tmp_path / "attacks.png", "Accuracy under attack, 18 images")
    (figure,) = saved_figures
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "diff"]
    assert len(figure.axes[0].get_lines()) == 2
