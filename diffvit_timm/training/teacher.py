"""Learning from a teacher's class probabilities: `Hinton et al. 2015` - https://arxiv.org/abs/1503.02531."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..data.loading import model_data_config
from ..errors import InputError
from ..models.pretrained import load_model
from .model import has_classes

SAME_DATA = ("input_size", "mean", "std")


def load_teacher(name: str, model: nn.Module, class_names: list[str]) -> Any:
    """A frozen network of the same classes that reads the same images.

    Args:
        name: timm model name, or local-dir:FOLDER or hf-hub:NAME.
        model: the student.
        class_names: of the dataset, in the order of the outputs.

    Raises:
        InputError: other classes, or another size or normalisation of images.
    """
    teacher = load_model(name, option="--teacher").eval().requires_grad_(False)
    if not has_classes(teacher, class_names):
        raise InputError(
            f"--teacher {name} has {teacher.num_classes} classes, and not those {len(class_names)} of the dataset: "
            "fine-tune it on the dataset first"
        )
    theirs, ours = model_data_config(teacher), model_data_config(model)
    for key in SAME_DATA:
        if tuple(theirs[key]) != tuple(ours[key]):
            raise InputError(f"--teacher {name} has {key} {theirs[key]}, and the model {ours[key]}: they must agree")
    return teacher


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the class probabilities at temperature T, nats, mean over the images.

    Args:
        logits, teacher_logits: (B, classes).
    """
    student, teacher = ((t.float() / temperature).log_softmax(-1) for t in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")
