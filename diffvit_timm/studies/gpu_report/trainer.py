"""The stage `trainer`: images per second of this package's trainer, with plain and with differential attention.

The images are synthetic. The times include their decoding and augmentation, the optimizer and the logging.
"""

import contextlib
import io
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..timing import paired_ratio
from .clock import Clock
from .groups import drift, measure_group
from .rows import Rows
from .settings import Settings

__all__ = ["run_trainer"]

ARMS = {"plain ViT": "plain", "Diff-ViT": "diff", "Diff-ViT, version 2": "diff_v2"}
TURNS = 3  # timed turns of each arm; another turn before them warms up
CLASSES = 4
EVALUATION_IMAGES = 16
DIFFERENT_IMAGES = 256  # the training images are repetitions of these; each repetition is decoded again


def run_trainer(settings: Settings, rows: Rows) -> list[dict[str, Any]]:
    """Time the trainer for the first variant and batch size; returns the rows of these settings."""
    half = settings.check_precisions
    row_settings = {
        "model": settings.models[0], "batch": settings.batch_sizes[0], "img_size": settings.img_size,
        "precision": half[0] if half else "no", "steps": settings.trainer_steps,
    }  # fmt: skip
    measure_group(rows, row_settings, Clock(settings.device), lambda: _measure(row_settings, rows))
    return rows.chosen([row_settings])


def _measure(row_settings: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """Train in turns with each kind of attention, as long as there is time for another turn."""
    # Not at the top: these need the extra [train].
    from ...training.accelerator import make_accelerator
    from ...training.config import TrainConfig

    config = TrainConfig.from_flat(
        "synthetic", row_settings["model"], pretrained=False, img_size=(row_settings["img_size"],),
        batch_size=row_settings["batch"], precision=row_settings["precision"], max_steps=row_settings["steps"],
        workers=_workers(rows.device), log_every=row_settings["steps"]
    )  # fmt: skip
    speeds: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(config.run, Path(folder), config.optim.ema)
        splits = _synthetic_splits(row_settings["img_size"], row_settings["steps"] * row_settings["batch"])
        for turn in range(-1, TURNS):
            if turn > 0 and not rows.seconds_left:
                break
            for name, attn in ARMS.items():
                arm = config.replace(attn=attn)
                speed = _train(arm, accelerator, splits, Path(folder) / f"{attn}{turn}")
                if turn >= 0:
                    speeds[name].append(speed)
    seconds = {name: [1 / speed for speed in values] for name, values in speeds.items()}
    plain = seconds["plain ViT"]
    results = {
        name: {
            "images_per_second": statistics.median(speeds[name]),
            "lowest_and_highest": [min(speeds[name]), max(speeds[name])],
            "of_plain": paired_ratio(seconds[name], plain)[0],
        }
        for name in ARMS
    }
    device = str(accelerator.device)
    return {"results": results, "rounds": len(plain), "drift": drift(plain), "device": device}


def _workers(device: str) -> int:
    return min(8, os.cpu_count() or 1) if torch.device(device).type == "cuda" else 0


def _train(config: Any, accelerator: Any, splits: Any, folder: Path) -> float:
    """Train once; returns the images per second."""
    from ...training.model import create_model
    from ...training.trainer import Trainer

    torch.manual_seed(0)
    model, _ = create_model(config.model, splits, report=False)
    trainer = Trainer(config, accelerator, model, splits, folder)
    with contextlib.redirect_stderr(io.StringIO()):  # a log of twelve trainings would hide the report
        return trainer.fit()["images_per_second"]


def _synthetic_splits(img_size: int, images: int) -> Any:
    """Return splits of smooth random images, which decode as fast as photographs of this size."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    from PIL import Image

    from ...data.decoding import png_image
    from ...data.splits import Splits

    rng = np.random.default_rng(0)
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(num_classes=CLASSES)})

    def split(count: int) -> Any:
        encoded = []
        for _ in range(min(count, DIFFERENT_IMAGES)):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            encoded.append(png_image(np.asarray(coarse.resize((img_size, img_size), Image.Resampling.BILINEAR))))
        labels = [i % CLASSES for i in range(len(encoded))]
        images = Dataset.from_dict({"image": encoded, "label": labels}, features=features)
        return images.select([i % len(encoded) for i in range(count)])

    return Splits(
        split(images), split(EVALUATION_IMAGES), split(EVALUATION_IMAGES), [f"class {i}" for i in range(CLASSES)]
    )
