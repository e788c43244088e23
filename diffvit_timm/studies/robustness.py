"""Accuracy and calibration of several networks on the same images, clean and corrupted.

Paper: `Hendrycks and Dietterich 2019` - https://arxiv.org/abs/1903.12261

The mean corruption accuracy (mCA) is the mean over all corruptions and severities. The paper's mCE divides the errors
by those of AlexNet, which few datasets have.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..console import track
from ..data.corruptions import CORRUPTIONS, corrupt
from ..data.decoding import decode_image
from ..data.images import MODES
from ..data.loading import model_data_config
from ..errors import InputError
from ..inspection.accuracy import Accuracy, bootstrap_interval, paired_differences
from ..layers.hooks import evaluating
from ..zero_shot.class_names import class_outputs, class_scores

if TYPE_CHECKING:
    import datasets

__all__ = [
    "CLEAN",
    "DEFAULT_SEVERITIES",
    "MEAN",
    "Condition",
    "Outcomes",
    "conditions",
    "dataset_outputs",
    "measure_robustness",
    "robustness_rows",
]

DEFAULT_SEVERITIES = (1, 3, 5)
BATCH_SIZE = 4  # images per batch, each with all its corruptions
FORWARD_SIZE = 64  # corrupted images per forward pass


class Condition(NamedTuple):
    """A corruption, a key of CORRUPTIONS, and its severity."""

    corruption: str
    severity: int


CLEAN = Condition("clean", 0)
MEAN = Condition("mean", 0)  # over all conditions but CLEAN


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Predictions of a network for each image under each condition.

    Attributes:
        right: whether the predicted class is the label, (conditions, images).
        confidences: probability of the predicted class, (conditions, images).
        losses: cross-entropy in nats, (conditions, images).
    """

    right: np.ndarray
    confidences: np.ndarray
    losses: np.ndarray


def conditions(
    corruptions: Sequence[str] = tuple(CORRUPTIONS), severities: Sequence[int] = DEFAULT_SEVERITIES
) -> list[Condition]:
    """List CLEAN and each corruption at each severity."""
    return [CLEAN, *itertools.starmap(Condition, itertools.product(corruptions, severities))]


class _CorruptedImages(Dataset):
    """Each image of a split under all conditions, as each of several networks crops it. It is decoded once.

    Args:
        split: a stored split of `Splits`.
        crops: data settings of each network, from `model_data_config`.
        listed: the conditions.
    """

    def __init__(self, split: "datasets.Dataset", crops: Sequence[dict], listed: Sequence[Condition]) -> None:
        self.split = split
        self.crops: list[tuple[str, Any]] = [
            (MODES[crop["input_size"][0]], create_transform(**crop, is_training=False, normalize=False))
            for crop in crops
        ]
        self.listed = listed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        """Return the images of each crop, (conditions, C, H, W), uint8, and the label."""
        row = self.split[index]
        image = decode_image(row["image"], "RGB", f"image {index} of split {self.split.split}")
        return [self._corrupted(crop(image.convert(mode))) for mode, crop in self.crops], row["label"]

    def _corrupted(self, image: Tensor) -> Tensor:
        pixels = image.permute(1, 2, 0).numpy()  # (H, W, C)
        views = [pixels if condition == CLEAN else corrupt(pixels, *condition) for condition in self.listed]
        return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


def measure_robustness(
    models: Mapping[str, Any],
    split: "datasets.Dataset",
    listed: Sequence[Condition] | None = None,
    class_names: Sequence[str] | None = None,
    device: str = "cpu",
    workers: int = 0,
) -> dict[str, Outcomes]:
    """Classify the images of a split under all conditions.

    An image is corrupted after a network's resizing and cropping, and before the normalisation. Networks that crop
    alike get the same corrupted images, which depend neither on the order nor on the batches.

    Args:
        models: name -> network, which is moved to the device.
        split: a stored split of `Splits`.
        listed: conditions; None: those of `conditions()`.
        class_names: class names of the dataset, by which `class_outputs` finds the outputs of each network; None: the
            outputs are the classes in the order of the labels.
        device: device to compute on.
        workers: number of processes that decode and corrupt images; 0: this process.

    Returns:
        Name -> outcomes, in the order of the conditions and of the images.

    Raises:
        InputError: as `model_data_config`, a network without one of the classes, or an image that does not decode.
    """
    listed = conditions() if listed is None else listed
    outputs = {
        name: None if class_names is None else dataset_outputs(name, models[name], class_names) for name in models
    }
    configs = {name: model_data_config(model.to(device)) for name, model in models.items()}
    crops: list[dict] = []  # networks with the same crop share its images
    for config in configs.values():
        if _crop(config) not in crops:
            crops.append(_crop(config))
    loader: DataLoader = DataLoader(_CorruptedImages(split, crops, listed), BATCH_SIZE, num_workers=workers)
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in models}
    with torch.inference_mode(), evaluating(*models.values()):
        for views, labels in track(loader, "classifying corrupted images", len(loader)):
            for name, model in models.items():
                images = views[crops.index(_crop(configs[name]))]  # (B, conditions, C, H, W)
                logits = _logits(model, images.to(device), configs[name])  # (B, conditions, outputs)
                if indices := outputs[name]:
                    logits = class_scores(logits.flatten(0, 1), indices).unflatten(0, logits.shape[:2])
                parts[name].append(_outcomes(logits, labels.to(device)))
    return {name: Outcomes(*(torch.cat(p).T.numpy() for p in zip(*own, strict=True))) for name, own in parts.items()}


def _crop(config: dict) -> dict:
    """Return the data settings without the normalisation."""
    return {key: value for key, value in config.items() if key not in ("mean", "std")}


def dataset_outputs(name: str, model: Any, class_names: Sequence[str]) -> list[list[int]]:
    """Find the outputs of each class of a dataset.

    Args:
        name: the user's name of the network, for the error.
        model: network that was trained on the dataset or on ImageNet-1k.
        class_names: class names of the dataset.

    Raises:
        InputError: a network without one of the classes.
    """
    try:
        found = class_outputs(model, class_names)
    except InputError as error:
        raise InputError(f"`models={name}`: {error}") from error
    if not all(found):
        missing = next(own for own, indices in zip(class_names, found, strict=True) if not indices)
        raise InputError(f"`models={name}` does not know the class {missing}: use a network that was trained on all")
    return found


def _logits(model: Any, images: Tensor, config: dict) -> Tensor:
    """Compute the logits of images, (B, conditions, C, H, W) and uint8 -> (B, conditions, outputs), float32."""
    mean, std = (torch.tensor(config[key], device=images.device).view(-1, 1, 1) for key in ("mean", "std"))
    chunks = images.flatten(0, 1).split(FORWARD_SIZE)
    return torch.cat([model((chunk / 255 - mean) / std).float() for chunk in chunks]).unflatten(0, images.shape[:2])


def _outcomes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits, (B, conditions, classes), and labels, (B,), into the tensors of `Outcomes`, (B, conditions)."""
    confidences, predictions = logits.softmax(dim=-1).max(dim=-1)
    labels = labels[:, None].expand_as(predictions)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(confidences)
    return (predictions == labels).cpu(), confidences.cpu(), losses.cpu()


def robustness_rows(outcomes: Mapping[str, Outcomes], listed: Sequence[Condition]) -> list[dict[str, Any]]:
    """Compute one row per network and condition, and one for the mean over all corruptions and severities (MEAN).

    Args:
        outcomes: result of `measure_robustness`.
        listed: its conditions, CLEAN and at least one other.

    Returns:
        Rows of `model`, `corruption`, `severity`, `images`; `accuracy` with `low` and `high`, its 95 % interval over
        the images (Wilson's; for MEAN by bootstrap); `nll`, the mean cross-entropy in nats; `ece`, the expected
        calibration error; and `difference`, the accuracy minus that of the first network, with `difference_low` and
        `difference_high`, its 95 % interval by paired bootstrap over the images (Efron and Tibshirani 1993). The
        differences of the first network are None. For MEAN, nll and ece are means of those of the conditions.
    """
    first = next(iter(outcomes.values()))
    rows = []
    for name, own in outcomes.items():
        cells = [_cell(own, place) for place in range(len(listed))]
        corrupted = [cell for cell, condition in zip(cells, listed, strict=True) if condition != CLEAN]
        scores = _scores(own, listed)  # (images, conditions + 1)
        low, high = bootstrap_interval(scores[:, -1:])
        mean = {"accuracy": float(scores[:, -1].mean()), "low": low[0], "high": high[0]}
        mean |= {key: float(np.mean([cell[key] for cell in corrupted])) for key in ("nll", "ece")}
        paired = paired_differences(scores, None if own is first else _scores(first, listed))
        for condition, cell, difference in zip([*listed, MEAN], [*cells, mean], paired, strict=True):
            rows.append({"model": name, **condition._asdict(), "images": len(scores), **cell, **difference})
    return rows


def _cell(own: Outcomes, place: int) -> dict[str, Any]:
    """Return the accuracy, its interval, the loss and the calibration error under one condition."""
    right = own.right[place]
    found = Accuracy.of(right, np.ones_like(right), own.losses[place], own.confidences[place])
    low, high = found.interval
    return {"accuracy": found.accuracy, "low": low, "high": high, "nll": found.loss, "ece": found.calibration_error}


def _scores(own: Outcomes, listed: Sequence[Condition]) -> np.ndarray:
    """Return whether each image is right under each condition, and its mean over all corruptions, (images, V + 1)."""
    corrupted = [condition != CLEAN for condition in listed]
    return np.vstack([own.right, own.right[corrupted].mean(axis=0)]).T.astype(np.float64)
