"""Deletion and insertion on a network whose use of its patches is known."""

import pytest
import torch
from torch import nn

from diffvit_timm.analysis.faithfulness import area_under, perturbation_curve


class Patch(nn.Module):
    """Class 1 is the brightness of one patch of 2 x 3."""

    def forward(self, x):
        bright = x[..., :4, 4:8].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(bright), bright], dim=-1)


def images(count=2):
    return torch.full((count, 3, 8, 12), 4.0)


def heat_of(row, column):
    heat = torch.zeros(2, 2, 3)
    heat[:, row, column] = 1
    return heat


def test_the_class_goes_at_once_where_the_heat_is_on_its_patch_and_stays_where_it_is_not():
    targets = torch.ones(2, dtype=torch.long)
    curve = lambda heat: perturbation_curve(Patch(), images(), heat, targets, "deletion", steps=6)  # noqa: E731
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


def test_a_flat_image_is_the_same_when_it_is_blurred():
    targets = torch.ones(2, dtype=torch.long)
    curve = perturbation_curve(Patch(), images(), heat_of(0, 1), targets, "insertion", steps=3)
    torch.testing.assert_close(curve, torch.sigmoid(torch.tensor(4.0)).expand(2, 4))


def test_the_area_under_a_line_is_its_triangle():
    torch.testing.assert_close(area_under(torch.linspace(1, 0, 11)), torch.tensor(0.5))
    torch.testing.assert_close(area_under(torch.tensor([[1.0, 0.0, 0.0]])), torch.tensor([0.25]))


@pytest.mark.parametrize(
    ("heat", "steps", "message"),
    [
        (torch.zeros(2, 3, 3), 4, r"heat \(2, 3, 3\) does not divide images \(2, 3, 8, 12\)"),
        (torch.zeros(1, 2, 3), 4, r"heat \(1, 2, 3\) does not divide"),
        (torch.zeros(2, 2, 3), 0, "steps=0 must be at least 1"),
    ],
)
def test_heat_that_does_not_fit_is_refused(heat, steps, message):
    with pytest.raises(ValueError, match=message):
        perturbation_curve(Patch(), images(), heat, torch.ones(2, dtype=torch.long), "deletion", steps)
