"""Knowledge distillation from a teacher's class probabilities: `Hinton et al. 2015` - https://arxiv.org/abs/1503.02531."""

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.loading import model_data_config
from ..errors import InputError
from ..models.outputs import is_multi_label_model
from ..models.pretrained import load_model
from .model import has_classes

__all__ = ["distillation_loss", "load_teacher", "weights_hash"]

SAME_DATA = ("input_size", "mean", "std")  # data settings that the two networks must share


def load_teacher(name: str, model: nn.Module, class_names: list[str]) -> Any:
    """Load a frozen network that has the same classes and reads the same images.

    Args:
        name: one of the four forms of a model (see models/pretrained.py).
        model: the student.
        class_names: class names of the dataset, in the order of the outputs.

    Raises:
        InputError: other classes, several labels per image, or another size or normalisation of the images.
    """
    teacher = load_model(name, parameter="teacher").eval().requires_grad_(False)
    if not has_classes(teacher, class_names):
        raise InputError(
            f"`teacher={name}` has {teacher.num_classes} classes, which differ from the {len(class_names)} classes of "
            "the dataset: fine-tune it on the dataset first"
        )
    if is_multi_label_model(teacher):
        raise InputError(f"`teacher={name}` was trained for several labels per image: give a network for one label")
    theirs, ours = model_data_config(teacher), model_data_config(model)
    for key in SAME_DATA:
        if tuple(theirs[key]) != tuple(ours[key]):
            raise InputError(f"`teacher={name}` has {key} {theirs[key]}, but the model {ours[key]}: they must agree")
    return teacher


def weights_hash(network: nn.Module) -> str:
    """Return the SHA-256 of the weights of a network, by which a resumed run recognises its teacher."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of the class probabilities at temperature T, in nats, averaged over images.

    Args:
        logits, teacher_logits: (B, classes).
        temperature: T.
    """
    student, teacher = ((t.float() / temperature).log_softmax(-1) for t in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")
