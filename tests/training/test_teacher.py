"""A teacher must have the same classes and read the same images; its loss is that of Hinton et al."""

import pytest
import torch

from diffvit_timm.errors import InputError
from diffvit_timm.models.pretrained import save_pretrained
from diffvit_timm.training.teacher import distillation_loss, load_teacher

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def save(tiny_model, tmp_path):
    """Function: class names, arguments of the model -> the local-dir: name of its folder."""

    def saved(names=NAMES, **kwargs):
        save_pretrained(tiny_model(**kwargs), tmp_path / "teacher", label_names=names)
        return f"local-dir:{tmp_path}/teacher"

    return saved


def test_the_loss_is_the_divergence_of_the_probabilities_at_the_temperature():
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    expected = 0.0
    for z, t in zip(logits, teacher, strict=True):
        p, q = torch.exp(t / 2) / torch.exp(t / 2).sum(), torch.exp(z / 2) / torch.exp(z / 2).sum()
        expected += 4 * (p * (p / q).log()).sum().item() / 5
    assert distillation_loss(logits, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher, teacher, 3.0).item() == pytest.approx(0.0, abs=1e-6)


def test_a_teacher_is_frozen_and_in_evaluation_mode(save, tiny_model):
    teacher = load_teacher(save(), tiny_model(), NAMES)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_of_other_classes_is_refused(save, tiny_model):
    with pytest.raises(InputError, match=r"`teacher=local-dir.*` has 2 classes"):
        load_teacher(save(["cat", "dog"], num_classes=2), tiny_model(), NAMES)
    with pytest.raises(InputError, match="differ from the 3 classes of the dataset"):
        load_teacher(save(["cat", "owl", "dog"]), tiny_model(), NAMES)


def test_a_teacher_that_reads_other_images_is_refused(save, tiny_model):
    with pytest.raises(InputError, match="input_size"):
        load_teacher(save(img_size=32), tiny_model(), NAMES)
    overlay = dict(mean=(0.1, 0.1, 0.1))
    with pytest.raises(InputError, match="mean"):
        load_teacher(save(pretrained_cfg_overlay=overlay), tiny_model(), NAMES)
