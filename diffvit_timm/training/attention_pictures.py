"""Pictures of the attention on a few fixed images, drawn during a training."""

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
from ..data.loading import model_data_config
from ..errors import InputError
from ..inspection.attention_maps import check_heat_maps
from ..inspection.figures import Picture, plot_overlays, save
from ..inspection.layout import patch_embedding
from ..inspection.overlay import patched_box
from ..inspection.rollout import heat_maps
from .trackers import log_picture

__all__ = ["AttentionPictures"]

IMAGES = 4  # number of images to draw


class AttentionPictures:
    """Draws the same images again and again, into a folder and to the trackers that accept pictures.

    Args:
        model: network that is trained.
        split: split to draw images from; every training draws the same ones.
        class_names: class names, in the order of the labels.
        folder: folder of the pictures, created with the first one.
        what: model, attention and dataset, for the titles.

    Raises:
        InputError: the attention of the model cannot be captured.
    """

    def __init__(self, model: nn.Module, split: Dataset, class_names: list[str], folder: Path, what: str) -> None:
        try:
            check_heat_maps(model)
        except TypeError as error:
            raise InputError(f"`attention_every`: {error}") from error
        self.folder, self.what = folder, what
        # The relevance is that of one class: of an image with several, the first. Images without any are left out.
        shuffled = split.shuffle(seed=0)
        labels = [np.atleast_1d(label) for label in shuffled["label"][:]]
        chosen = [row for row, own in enumerate(labels) if len(own)][:IMAGES]
        if not chosen:
            raise InputError(f"`attention_every`: none of the {len(split)} validation images has a class to draw")
        rows = list(shuffled.select(chosen))
        self.labels = torch.tensor([int(labels[row][0]) for row in chosen])
        config = model_data_config(model)
        mode = MODES[config["input_size"][0]]
        images = [decode_image(row["image"], mode, f"an image of {split.split}") for row in rows]
        transform: Any = create_transform(**config, is_training=False)
        self.batch = torch.stack([transform(image) for image in images])
        self.pictures = [
            Picture(image, patched_box(image.size, transform, patch_embedding(model)), class_names[label])
            for image, label in zip(images, self.labels.tolist(), strict=True)
        ]

    def draw(self, model: nn.Module, name: str, accelerator: Accelerator, step: int) -> None:
        """Write NAME.png and its numbers: attention of the last layer, rollout, and relevance for the image's class."""
        device = next(model.parameters()).device
        heat = heat_maps(model, self.batch.to(device), self.labels.to(device))
        columns = {
            "last layer": heat.last_layer,
            "rollout": heat.rollout,
            "for its class, by gradients": heat.relevance,
        }
        numbers = {kind: maps.cpu().numpy() for kind, maps in columns.items()}
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.png"
        title = f"Attention of the last layer, rollout and relevance\n{self.what}: validation images, {name}"
        save(plot_overlays(self.pictures, numbers, title), path, **numbers)
        log_picture(accelerator, "attention", path, step)
