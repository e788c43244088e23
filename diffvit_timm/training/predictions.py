"""The picture of test images with what the trained network predicts for them, right and wrong ones."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from timm.data import create_transform
from torch import nn

from ..data.decoding import decode_image
from ..data.images import MODES
from ..data.labels import is_multi_label
from ..data.loading import model_data_config
from ..inspection.accuracy import Accuracy
from ..inspection.average_precision import MultiLabelScore
from ..inspection.figures import PredictedImage, plot_predictions
from ..inspection.saving import save_figure
from ..models.outputs import probabilities

__all__ = ["choose_images", "draw_predictions"]

IMAGES = 16  # half of them wrong, if there are enough of both kinds
CLASSES = 3  # likeliest classes per image
SEED = 0  # the same images for every run with the same errors


def choose_images(is_right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw images at random, always the same ones: half of them wrong, as far as there are enough of each kind.

    Args:
        is_right: whether each image is classified correctly, (n,).

    Returns:
        The indices of the wrong images and of the right images, each in the order of the split.
    """
    generator = np.random.default_rng(SEED)
    wrong, right = np.flatnonzero(~is_right), np.flatnonzero(is_right)
    count = min(len(wrong), max(IMAGES // 2, IMAGES - len(right)))
    drawn = (
        np.sort(generator.choice(kind, size, replace=False))
        for kind, size in ((wrong, count), (right, min(len(right), IMAGES - count)))
    )
    return next(drawn), next(drawn)


def draw_predictions(
    model: nn.Module,
    split: Dataset,
    class_names: list[str],
    test: Accuracy | MultiLabelScore,
    path: Path,
    what: str,
    accelerator: Accelerator,
) -> None:
    """Draw some test images with their likeliest classes, the wrong ones first.

    If an image may have any number of classes, it is neither right nor wrong, and the images are drawn at random.

    Args:
        model: trained network.
        split: test images.
        class_names: class names, in the order of the labels.
        test: score of the network on the split.
        path: PNG file to write.
        what: model, attention and dataset, for the title.
        accelerator: accelerator of the run, for the precision.
    """
    chosen, text = _choose(test)
    rows = [split[index] for index in chosen]
    config = model_data_config(model)
    mode = MODES[config["input_size"][0]]
    images = [decode_image(row["image"], mode, f"an image of {split.split}") for row in rows]
    transform: Any = create_transform(**config, is_training=False)
    batch = torch.stack([transform(image) for image in images]).to(next(model.parameters()).device)  # (B, C, H, W)
    model.eval()
    # a compiled model would be compiled again for another batch size
    with torch.compiler.set_stance("force_eager"), torch.inference_mode(), accelerator.autocast():
        shares = probabilities(model, model(batch)).cpu()  # (B, classes)
    cases = []
    for image, row, share in zip(images, rows, shares, strict=True):
        best = share.topk(min(CLASSES, len(class_names)))
        predicted = [(class_names[c], p) for c, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        own = [(class_names[label], share[label].item()) for label in np.atleast_1d(row["label"]).astype(int)]
        true, classes = (None, own) if is_multi_label(split.features) else (own[0], None)
        cases.append(PredictedImage(image, predicted, true, classes=classes))
    save_figure(plot_predictions(cases, f"{what}: {text}"), path)


def _choose(test: Accuracy | MultiLabelScore) -> tuple[list[int], str]:
    """Choose the images to draw; returns their indices, and the lines of the title that say what they are."""
    if isinstance(test, MultiLabelScore):
        generator = np.random.default_rng(SEED)
        drawn = np.sort(generator.choice(test.images, min(IMAGES, test.images), replace=False))
        text = (
            f"mean average precision {test.mean_average_precision:.2%} on {test.images:,} test images\n"
            f"{len(drawn)} of them, drawn at random; the bars of their own classes are blue and hatched"
        )
        return drawn.tolist(), text
    wrong, right = choose_images(test.is_right)
    total = int(test.is_right.sum())
    text = (
        f"{test.accuracy:.2%} of {test.images:,} test images are right\nDrawn at random: {len(wrong)} of the "
        f"{test.images - total:,} wrong and {len(right)} of the {total:,} right images"
    )
    return [*wrong.tolist(), *right.tolist()], text
