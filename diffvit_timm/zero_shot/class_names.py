"""Outputs of a network that stand for the classes of a dataset, found by name; ImageNet's by their WordNet names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import infer_imagenet_subset
from torch import Tensor

from ..errors import InputError
from ..models.outputs import is_multi_label_model
from .imagenet_names import imagenet_indices, normalised

__all__ = ["class_outputs", "class_scores", "imagenet_classes", "read_class_map"]

# Breeds of Oxford-IIIT Pet that have another name in WordNet.
OTHER_NAMES = {
    "egyptian mau": "egyptian cat",
    "german shorthaired": "german short haired pointer",
    "japanese chin": "japanese spaniel",
    "persian": "persian cat",
    "wheaten terrier": "soft coated wheaten terrier",
}


def imagenet_classes(names: Sequence[str], class_map: dict[str, list[int]] | None = None) -> list[list[int]]:
    """Find the classes of ImageNet-1k that have the names of a dataset's classes.

    Args:
        names: class names of the dataset, in any of the forms that `imagenet_names` lists.
        class_map: class name -> indices, from `read_class_map`. It takes precedence over the search by name.

    Returns:
        The indices in ImageNet-1k of each class; an empty list for a class that ImageNet does not have.

    Raises:
        InputError: no class is one of ImageNet's.
    """
    class_map = class_map or {}
    known = imagenet_indices([OTHER_NAMES.get(normalised(name), name) for name in names])
    found = [class_map.get(name, own) for name, own in zip(names, known, strict=True)]
    if not any(found):
        raise InputError(
            f"none of the classes ({', '.join(list(names)[:3])}, ...) has the name of an ImageNet class: pass "
            "`class_map`, or use a model that was trained on the dataset"
        )
    return found


def class_outputs(model: Any, names: Sequence[str], class_map: dict[str, list[int]] | None = None) -> list[list[int]]:
    """Find the outputs of a timm model that stand for a dataset's classes, by its own label names or by ImageNet's.

    Args:
        model: model that was trained on the dataset or on ImageNet-1k.
        names, class_map: as in `imagenet_classes`.

    Returns:
        The indices of each class's outputs; an empty list for a class that the model does not have.

    Raises:
        InputError: a model with other classes, or one for several labels per image.
    """
    if is_multi_label_model(model):
        raise InputError("the network was trained for several labels per image, and here each image has one")
    labels = model.pretrained_cfg.get("label_names")
    if labels and set(names) <= set(labels):
        return [[labels.index(name)] for name in names]
    if infer_imagenet_subset(model) == "imagenet-1k":
        return imagenet_classes(names, class_map)
    raise InputError(
        f"the {model.num_classes} classes of the network are neither the dataset's {len(names)} by name nor ImageNet's "
        "1,000: use another model, or pass another `dataset`"
    )


def class_scores(outputs: Tensor, indices: Sequence[Sequence[int]]) -> Tensor:
    """Compute the score of each class as the largest of its outputs.

    Args:
        outputs: outputs of a network, (B, outputs).
        indices: indices of each class's outputs.

    Returns:
        The scores, (B, classes); -inf for a class without outputs.
    """
    nothing = outputs.new_full((len(outputs), 1), -torch.inf)
    return torch.cat([outputs[:, list(own)].amax(1, keepdim=True) if own else nothing for own in indices], dim=1)


def read_class_map(path: Path, names: Sequence[str]) -> dict[str, list[int]]:
    """Read a YAML file of lines `class: [index, ...]` with indices of ImageNet-1k.

    Args:
        path: path of the file; ~ is the home folder.
        names: class names of the dataset.

    Raises:
        InputError: the file cannot be read, or has an unknown class or an index above 999.
    """
    try:
        given = yaml.safe_load(path.expanduser().read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"`class_map={path}` cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"`class_map={path}` is not a mapping of class names to lists of indices")
    for name, indices in given.items():
        if name not in names:
            raise InputError(f"`class_map={path}` names {name!r}, but the classes of the dataset are {list(names)}")
        valid = isinstance(indices, list) and all(type(index) is int and 0 <= index < 1000 for index in indices)
        if not valid:
            raise InputError(f"`class_map={path}` maps {name} to {indices!r}: give a list of indices from 0 to 999")
    return given
