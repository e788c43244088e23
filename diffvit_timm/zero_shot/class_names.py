"""Which outputs of a network are a dataset's classes: of ImageNet's thousand by their names in WordNet."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from ..errors import InputError

__all__ = ["class_outputs", "class_scores", "imagenet_classes", "read_class_map"]

# Breeds of Oxford-IIIT Pet that WordNet has under another name.
OTHER_NAMES = {
    "egyptian mau": "egyptian cat",
    "german shorthaired": "german short haired pointer",
    "japanese chin": "japanese spaniel",
    "persian": "persian cat",
    "wheaten terrier": "soft coated wheaten terrier",
}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def _by_name() -> dict[str, list[int]]:
    """ImageNet-1k's indices under each of their names in WordNet; some names are two classes'."""
    info = ImageNetInfo("imagenet-1k")
    found: dict[str, list[int]] = {}
    for index in range(info.num_classes()):
        for lemma in info.index_to_description(index).split(","):
            found.setdefault(_plain(lemma), []).append(index)
    return found


def imagenet_classes(names: Sequence[str], class_map: dict[str, list[int]] | None = None) -> list[list[int]]:
    """Of each class the indices of ImageNet-1k that are it, by its name; none where ImageNet does not have it.

    Args:
        names: of the dataset's classes.
        class_map: of `read_class_map`: for these names its indices are taken.

    Raises:
        InputError: no class is ImageNet's.
    """
    by_name, class_map = _by_name(), class_map or {}
    found = [
        class_map[name] if name in class_map else by_name.get(OTHER_NAMES.get(_plain(name), _plain(name)), [])
        for name in names
    ]
    if not any(found):
        raise InputError(
            f"none of the classes ({', '.join(list(names)[:3])}, ...) has the name of one of ImageNet's: pass "
            "--class-map FILE, or a model trained on the dataset"
        )
    return found


def class_outputs(model: Any, names: Sequence[str], class_map: dict[str, list[int]] | None = None) -> list[list[int]]:
    """Of each class the outputs of a timm model that stand for it: by its own label names, or by ImageNet's.

    Args:
        model: trained on the dataset, or on ImageNet-1k.
        names, class_map: as in `imagenet_classes`.

    Raises:
        InputError: a model of other classes.
    """
    labels = model.pretrained_cfg.get("label_names")
    if labels and set(names) <= set(labels):
        return [[labels.index(name)] for name in names]
    if infer_imagenet_subset(model) == "imagenet-1k":
        return imagenet_classes(names, class_map)
    raise InputError(
        f"a network of {model.num_classes} classes, neither the dataset's {len(names)} by name nor ImageNet's 1,000: "
        "give another model, or --dataset"
    )


def class_scores(outputs: Tensor, indices: Sequence[Sequence[int]]) -> Tensor:
    """Of each class the largest of its outputs, (B, outputs) to (B, classes); -inf where it has none."""
    nothing = outputs.new_full((len(outputs), 1), -torch.inf)
    return torch.cat([outputs[:, list(own)].amax(1, keepdim=True) if own else nothing for own in indices], dim=1)


def read_class_map(path: Path, names: Sequence[str]) -> dict[str, list[int]]:
    """A YAML file of `class: [index, ...]`, the indices of ImageNet-1k.

    Raises:
        InputError: it cannot be read, names a class that is none, or an index beyond 999.
    """
    try:
        given = yaml.safe_load(path.expanduser().read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--class-map {path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"--class-map {path} is not a mapping of class names to lists of indices")
    for name, indices in given.items():
        if name not in names:
            raise InputError(
                f"--class-map {path}: {name!r} is no class of the dataset, whose classes are {list(names)}"
            )
        right = isinstance(indices, list) and all(type(index) is int and 0 <= index < 1000 for index in indices)
        if not right:
            raise InputError(f"--class-map {path}: {name}: {indices!r} is no list of indices from 0 to 999")
    return given
