"""Deletion and insertion on a network that is known to use a single patch."""

import pytest
import torch
from timm.layers import PatchEmbed
from torch import nn

from diffvit_timm.inspection.perturbation import area_under, perturbation_curve


class OnePatchModel(nn.Module):
    """The logit of class 1 is the brightness of one of the 2 x 3 patches."""

    def __init__(self, size=(8, 12)):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size=size, patch_size=4)

    def forward(self, x):
        bright = x[..., :4, 4:8].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(bright), bright], dim=-1)


def images(count=2):
    return torch.full((count, 3, 8, 12), 4.0)


def heat_of(row, column):
    heat = torch.zeros(2, 2, 3)
    heat[:, row, column] = 1
    return heat


def test_the_probability_falls_when_the_patch_of_the_class_is_deleted():
    targets = torch.ones(2, dtype=torch.long)
    curve = lambda heat: perturbation_curve(OnePatchModel(), images(), heat, targets, "deletion", steps=6)  # noqa: E731
    there, elsewhere = curve(heat_of(0, 1)), curve(-heat_of(0, 1))
    on, off = torch.sigmoid(torch.tensor(4.0)), torch.tensor(0.5)
    torch.testing.assert_close(there[0], torch.stack([on] + [off] * 6))
    torch.testing.assert_close(elsewhere[1], torch.stack([on] * 6 + [off]))
    assert area_under(there)[0] < area_under(elsewhere)[0]


def test_insertion_ends_with_the_image_and_deletion_begins_with_it(any_vit):
    model, x = any_vit(), torch.randn(2, 3, 16, 16)
    targets, heat = torch.tensor([1, 3]), torch.rand(2, 4, 4)
    expected = model(x).softmax(-1)[[0, 1], targets]
    deletion, insertion = (perturbation_curve(model, x, heat, targets, kind) for kind in ("deletion", "insertion"))
    assert deletion.shape == insertion.shape == (2, 15)
    torch.testing.assert_close(deletion[:, 0], expected.detach())
    torch.testing.assert_close(insertion[:, -1], expected.detach())
    torch.testing.assert_close(deletion[:, -1], model(torch.zeros_like(x)).softmax(-1)[[0, 1], targets].detach())


def test_blurring_does_not_change_a_flat_image():
    targets = torch.ones(2, dtype=torch.long)
    curve = perturbation_curve(OnePatchModel(), images(), heat_of(0, 1), targets, "insertion", steps=3)
    torch.testing.assert_close(curve, torch.sigmoid(torch.tensor(4.0)).expand(2, 4))


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_pixels_that_no_patch_covers_do_not_change(kind):
    """Images have 10 x 15 pixels, of which patches of 4 x 4 cover 8 x 12."""
    model, seen = OnePatchModel(size=(10, 15)), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.rand(2, 3, 10, 15) + 1
    perturbation_curve(model, x, heat_of(1, 2), torch.ones(2, dtype=torch.long), kind, steps=6)
    patch, patches = torch.zeros(2, 10, 15, dtype=torch.bool)
    patch[4:8, 8:12] = True
    patches[:8, :12] = True
    assert torch.equal(seen[0] != seen[1], patch.expand_as(x))
    assert torch.equal(seen[0] != seen[-1], patches.expand_as(x))


def test_the_area_under_a_line_is_that_of_its_triangle():
    torch.testing.assert_close(area_under(torch.linspace(1, 0, 11)), torch.tensor(0.5))
    torch.testing.assert_close(area_under(torch.tensor([[1.0, 0.0, 0.0]])), torch.tensor([0.25]))


@pytest.mark.parametrize(
    ("heat", "steps", "message"),
    [
        (torch.zeros(2, 3, 3), 4, r"\(2, 3, 3\) must have the shape \(2, 2, 3\), .* images of shape \(2, 3, 8, 12\)"),
        (torch.zeros(2, 1, 3), 4, r"\(2, 1, 3\) must have the shape \(2, 2, 3\)"),  # its rows divide those of the grid
        (torch.zeros(1, 2, 3), 4, r"\(1, 2, 3\) must have the shape"),
        (torch.zeros(2, 2, 3), 0, "steps=0 must be at least 1"),
    ],
)
def test_heat_of_another_shape_is_an_error(heat, steps, message):
    with pytest.raises(ValueError, match=message):
        perturbation_curve(OnePatchModel(), images(), heat, torch.ones(2, dtype=torch.long), "deletion", steps)
