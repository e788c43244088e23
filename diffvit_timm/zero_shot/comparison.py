"""Classifiers of the same classes, compared on the same images: CLIP, also converted, and supervised networks."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..console import track
from ..conversion.weights import READS_IMAGES
from ..data.augment import without_seed
from ..data.decoding import decode_image
from ..data.images import ImageDataset
from ..data.loading import model_data_config
from ..inspection.accuracy import Accuracy
from ..inspection.saving import save_figure
from .class_names import class_outputs, class_scores
from .clip import Clip, ImageTower, zero_shot_classifier, zero_shot_logits
from .disagreement import agreement, plot_agreement, plot_wins, top_k, wins
from .tower import convert_tower

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Classifier",
    "accuracy_rows",
    "clip_classifier",
    "convert_clip",
    "draw_disagreement",
    "split_logits",
    "supervised_classifier",
]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of the classes of a dataset: a network, and what turns its outputs into logits of the classes.

    Attributes:
        name: name in tables and figures.
        transform: function that turns an image into a normalised tensor, (C, H, W).
        in_chans: number of colour channels that it reads, 1 or 3.
        network: network in evaluation mode, on its device: images (B, C, H, W) -> outputs (B, outputs).
        score: function that turns outputs in float32 into logits, (B, classes); -inf for an unknown class.
        known: whether it knows each class, (classes,).
        dtype: precision of the weights and of the images. The logits are always computed in float32.
    """

    name: str
    transform: Callable
    in_chans: int
    network: nn.Module
    score: Callable[[Tensor], Tensor]
    known: np.ndarray
    dtype: torch.dtype = torch.float32

    @torch.inference_mode()
    def classify(self, images: Tensor) -> Tensor:
        """Turn images on the network's device, (B, C, H, W), into logits, (B, classes)."""
        return self.score(self.network(images.to(self.dtype)).float())

    def cast(self, dtype: torch.dtype) -> "Classifier":
        """Return a copy whose network has its weights in another precision."""
        return dataclasses.replace(self, network=copy.deepcopy(self.network).to(dtype), dtype=dtype)


def clip_classifier(clip: Clip, names: Sequence[str], templates: Sequence[str], device: str = "cpu") -> Classifier:
    """Make a zero-shot classifier, which knows every class.

    Args:
        clip: CLIP model; it is moved to the device.
        names: class names as CLIP is asked for them, in the order of the labels.
        templates: sentences with {} in place of the class name.
        device: device to compute on.
    """
    clip.model.to(device)
    weights = zero_shot_classifier(clip, names, templates).to(device)  # (classes, dim)
    scale = clip.model.logit_scale.exp().item()
    return Classifier(
        clip.name, clip.transform, 3, ImageTower(clip.model.visual).eval(),
        lambda embeddings: zero_shot_logits(embeddings, weights, scale), np.ones(len(names), dtype=bool),
    )  # fmt: skip


def supervised_classifier(
    model: Any,
    name: str,
    names: Sequence[str],
    class_map: dict[str, list[int]] | None = None,
    device: str = "cpu",
) -> Classifier:
    """Make a classifier of a network that was trained on the dataset, or on ImageNet-1k.

    Args:
        model: timm model; it is moved to the device and put into evaluation mode.
        name: name in tables and figures.
        names: class names, in the order of the labels.
        class_map: class name -> indices in ImageNet-1k, as in `imagenet_classes`.
        device: device to compute on.

    Raises:
        InputError: as `class_outputs` and `model_data_config`.
    """
    indices = class_outputs(model, names, class_map)
    config = model_data_config(model)
    transform: Any = create_transform(**config, is_training=False)
    return Classifier(
        name, transform, config["input_size"][0], model.eval().to(device),
        lambda outputs: class_scores(outputs, indices), np.array([bool(own) for own in indices]),
    )  # fmt: skip


def convert_clip(
    clip: Clip, method: str, train: "Dataset | None" = None, count: int = 256, batch_size: int = 32
) -> Clip:
    """Return a CLIP model whose image tower is a Diff-ViT with the converted weights.

    Args:
        clip: CLIP model; it is not changed.
        method: conversion method; 'mirror' and 'contrast' make a tower of version 2.
        train: training split, whose labels are not used; None for a method that reads no images.
        count: number of images to calibrate on, drawn at random.
        batch_size: number of images per batch.

    Raises:
        ValueError: the image tower cannot be converted, with the reason.
    """
    images = None
    if method in READS_IMAGES and train is not None:
        few = train.shuffle(seed=0).take(min(count, len(train)))
        images = (batch for batch, _ in DataLoader(ImageDataset(few, without_seed(clip.transform)), batch_size))
    return convert_tower(clip, method, images)


def split_logits(classifier: Classifier, split: "Dataset", batch_size: int = 32, device: str = "cpu") -> np.ndarray:
    """Compute the logits of all images of a split, and show the progress.

    Args:
        classifier: classifier on the device.
        split: a stored split of `Splits`.
        batch_size: number of images per batch.
        device: device to compute on.

    Returns:
        The logits, (images, classes).
    """
    images = ImageDataset(split, without_seed(classifier.transform), classifier.in_chans)
    loader = DataLoader(images, batch_size)
    batches = track(loader, classifier.name, len(loader))
    return torch.cat([classifier.classify(batch.to(device)).cpu() for batch, _ in batches]).numpy()


def accuracy_rows(
    logits: Mapping[str, np.ndarray], labels: np.ndarray, exact: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """Compute one row per classifier.

    Args:
        logits: name of each classifier -> its logits, (images, classes).
        labels: classes of the images, (images,).
        exact: the logits of the same classifiers in float32, if they were computed in another precision.

    Returns:
        Rows of `model` (name), number of `images`, `top1` accuracy, `low` and `high` (its 95 % interval), `top5`
        accuracy, and `mean_per_class` (mean of the accuracies of the classes). With `exact` also `top1_fp32`, the
        accuracy in float32, and `same_as_fp32`, the share of images with the same top-1 class as in float32.
    """
    rows = []
    for name, values in logits.items():
        accuracy = Accuracy.of(values.argmax(axis=1), labels, np.zeros(len(labels)))
        rows.append(
            {
                "model": name, "images": accuracy.images, "top1": accuracy.accuracy, "low": accuracy.interval[0],
                "high": accuracy.interval[1], "top5": top_k(values, labels, 5),
                "mean_per_class": accuracy.mean_per_class,
            }
        )  # fmt: skip
        if exact is not None:
            in_fp32 = exact[name].argmax(axis=1)
            rows[-1]["top1_fp32"] = float(np.mean(in_fp32 == labels))
            rows[-1]["same_as_fp32"] = float(np.mean(in_fp32 == values.argmax(axis=1)))
    return rows


def draw_disagreement(
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    split: "Dataset",
    names: Sequence[str],
    where: str,
    folder: Path,
    shown: int = 5,
) -> dict[str, Any]:
    """Draw how often the classifiers agree, and images that only the first or only the last of them gets right.

    The pictures are agreement.png, first-alone-right.png and last-alone-right.png.

    Args:
        logits: name of each classifier -> its logits, (images, classes); at least two classifiers.
        labels: classes of the images, (images,).
        split: the images, a stored split of `Splits`.
        names: class names as the figures show them.
        where: number and origin of the images, for the titles.
        folder: existing folder to write to.
        shown: largest number of images per picture.

    Returns:
        `agreement`, the shares of images with the same prediction as a nested list, and `alone_right`, the number of
        images that only the first and only the last classifier gets right, by their names.
    """
    predictions = {name: values.argmax(axis=1) for name, values in logits.items()}  # (images,) each
    matrix = agreement(predictions)
    save_figure(plot_agreement(matrix, list(logits), f"Agreement, {where}"), folder / "agreement.png")
    first, *_, last = logits
    only_first, only_last = wins(predictions[first], predictions[last], labels)
    for winner, loser, rows, name in ((first, last, only_first, "first"), (last, first, only_last, "last")):
        picked = rows[:: max(1, len(rows) // shown)][:shown]  # evenly spaced, because a split is often sorted by class
        images = [decode_image(split[int(i)]["image"], "RGB", f"image {i} of {split.split}") for i in picked]
        probabilities = {n: torch.tensor(logits[n][picked]).softmax(dim=-1).numpy() for n in (first, last)}
        title = f"{winner} right and {loser} wrong: {len(rows)} of {where}"
        figure = plot_wins(images, labels[picked].tolist(), probabilities, names, title)
        save_figure(figure, folder / f"{name}-alone-right.png")
    return {"agreement": matrix.tolist(), "alone_right": {first: len(only_first), last: len(only_last)}}
