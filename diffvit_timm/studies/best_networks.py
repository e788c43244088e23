"""Figures of the networks of a study that were best on the validation images: where they look, and how they learned."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.config import DatasetConfig
from ..data.decoding import decode_image
from ..files import read_yaml, remove_folder
from ..inspection.pictures import draw_image, draw_models
from ..inspection.views import view_images
from ..models.pretrained import load_model

__all__ = ["draw_best_networks"]

IMAGES = 3  # test images that are drawn, of different classes


def draw_best_networks(results: Sequence[dict], folder: Path) -> None:
    """Draw the best differential network and the best plain network of a study on a few test images.

    The pictures are those of `diffvit explain`, and the training curves of both runs.

    Args:
        results: results of trainings on one dataset, as in result.json, with the run folder as `output`.
        folder: folder of the pictures, which are replaced.
    """
    best: dict[bool, dict] = {}
    for result in results:
        is_plain = result["attn"] == "plain"
        if is_plain not in best or result["val_accuracy"] > best[is_plain]["val_accuracy"]:
            best[is_plain] = result
    runs = [Path(best[is_plain]["output"]) for is_plain in sorted(best)]  # the differential one first
    names = [f"{run.parent.name}-{run.name}" for run in runs]
    images = _test_images(runs[0])
    views = [view_images(load_model(str(run)).eval(), name, images) for run, name in zip(runs, names, strict=True)]
    if folder.exists():
        remove_folder(folder)
    for run, view in zip(runs, views, strict=True):
        own = folder / view.name
        own.mkdir(parents=True)
        for index in range(len(images)):
            draw_image(view, index, own)
        shutil.copyfile(run / "training.png", own / "training.png")
    draw_models(views, folder)


def _test_images(run: Path) -> dict:
    """Return the first test image of some classes of a run's dataset, by the name of the class."""
    config = read_yaml(run / "config.yaml", "restore it from a copy")
    names = [field for field in DatasetConfig.__dataclass_fields__ if field in config]
    splits = DatasetConfig(**{name: config[name] for name in names}).load()
    labels = np.array(splits.test["label"][:])
    rows = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:IMAGES]]
    return {
        splits.class_names[labels[row]].replace("/", "-"): decode_image(
            splits.test[row]["image"], "RGB", f"image {row}"
        )
        for row in rows
    }
