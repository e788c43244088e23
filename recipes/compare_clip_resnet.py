"""CLIP's zero-shot classifier beside a supervised network: which is right, where, and what a conversion keeps.

    python recipes/compare_clip_resnet.py --clip RN50:openai --supervised resnet50.a1_in1k
    python recipes/compare_clip_resnet.py --clip ViT-B-16:openai --convert calibrated --supervised runs/finetuned

Class names are the dataset's own. A supervised network of ImageNet is asked for the classes that are ImageNet's by
their names in WordNet, and everything is counted on the images of those; one that is trained on the dataset (a
fine-tuned Diff-ViT) for all of them. `--convert` adds the CLIP model with a Diff-ViT in the place of its image tower.
Results: recipes/README.md.
"""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0, track
from diffvit_timm.data.augment import without_seed
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.splits import Splits
from diffvit_timm.data.images import ImageDataset, decode_image
from diffvit_timm.data.loading import model_data_config
from diffvit_timm.errors import InputError, require_at_least, require_device
from diffvit_timm.files import output_folder
from diffvit_timm.models.pretrained import check_model, load_model, model_name, short_names
from diffvit_timm.training.metrics import Accuracy
from diffvit_timm.zero_shot import disagreement
from diffvit_timm.zero_shot.class_names import class_outputs, class_scores, read_class_map
from diffvit_timm.zero_shot.clip import Clip, load_clip, logits, read_templates, readable, zero_shot_classifier
from diffvit_timm.zero_shot.tower import convert_tower


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    clip: str = "RN50:openai"
    """ARCHITECTURE:TAG of open_clip, hf-hub:NAME, or a folder of a CLIP model."""
    supervised: str | None = None
    """timm model name with its pretrained tag, hf-hub:NAME, or a folder: of weights, or of a run."""
    convert: Literal["none", "svd", "slice", "calibrated", "mirror"] = "none"
    """Add CLIP with its image tower converted so; mirror: to version 2."""
    dataset: str = "timm/oxford-iiit-pet"
    """Name on the Hub, or a folder: parquet files, or one folder of images a class."""
    label_column: str = "label"
    """Column of the class labels."""
    templates: str = "auto"
    """pet, cifar, fashion, mnist, imagenet, plain; auto: by the dataset's name; or a file of one sentence a line."""
    class_map: Path | None = None
    """YAML file of `class: [ImageNet index, ...]`, where the names do not tell."""
    images: int = 0
    """Test images, drawn at random; 0: all."""
    calibration_images: int = 256
    """Training images, unlabelled, that --convert calibrated looks at."""
    shown: int = 5
    """Images of the pictures, a side."""
    batch_size: int = 32
    """Images at a time."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, ..."""
    output: str = "auto"
    """Folder of the tables and pictures, new or empty; auto: runs/clip-DATE-TIME."""

    def __post_init__(self) -> None:
        require_at_least(1, calibration_images=self.calibration_images, shown=self.shown, batch_size=self.batch_size)
        require_at_least(0, images=self.images)
        require_device(self.device)
        if self.supervised is None and self.class_map is not None:
            raise InputError(f"--class-map {self.class_map} has no effect without --supervised")
        if self.supervised is None and self.convert == "none":
            raise InputError("nothing to compare --clip with: pass --supervised or --convert")


@dataclasses.dataclass(frozen=True)
class Column:
    """A classifier of the dataset's classes.

    Attributes:
        name: as the tables call it.
        transform: image -> tensor (C, H, W).
        in_chans: colour channels.
        classify: images (B, C, H, W) -> logits (B, classes), -inf for what it does not know.
        known: (classes,), whether it knows a class.
    """

    name: str
    transform: Callable
    in_chans: int
    classify: Callable[[Tensor], Tensor]
    known: np.ndarray


def clip_column(clip: Clip, names: list[str], templates: tuple[str, ...], device: str) -> Column:
    """CLIP, asked with sentences."""
    clip.model.to(device)
    classifier = zero_shot_classifier(clip, names, templates).to(device)
    known = np.ones(len(names), dtype=bool)
    return Column(clip.name, clip.transform, 3, lambda images: logits(clip, classifier, images), known)


def supervised_column(config: CompareConfig, called: str, names: list[str]) -> Column:
    """A timm network, `called` so by the tables: of the dataset's classes by its label names, or of ImageNet."""
    assert config.supervised is not None
    model = load_model(model_name(config.supervised), option="--supervised").eval().to(config.device)
    settings = model_data_config(model)
    class_map = read_class_map(config.class_map, names) if config.class_map else None
    try:
        indices = class_outputs(model, names, class_map)
    except InputError as error:
        raise InputError(f"--supervised {config.supervised}: {error}") from error

    @torch.inference_mode()
    def classify(images: Tensor) -> Tensor:
        return class_scores(model(images).float(), indices)

    transform: Any = create_transform(**settings, is_training=False)
    return Column(
        called,
        transform,
        settings["input_size"][0],
        classify,
        np.array([bool(own) for own in indices]),
    )


def converted(clip: Clip, config: CompareConfig, splits: Splits) -> Clip:
    """CLIP with a Diff-ViT in the place of its image tower."""
    images = None
    if config.convert == "calibrated":
        few = splits.train.shuffle(seed=0).take(min(config.calibration_images, len(splits.train)))
        images = (batch for batch, _ in DataLoader(ImageDataset(few, without_seed(clip.transform)), config.batch_size))
    try:
        return convert_tower(clip, config.convert, images)
    except ValueError as error:
        raise InputError(f"--convert {config.convert}: {error}") from error


def scores_of(column: Column, split: Any, config: CompareConfig) -> np.ndarray:
    """Logits of a split, (n, classes)."""
    images = ImageDataset(split, without_seed(column.transform), column.in_chans)
    loader = DataLoader(images, config.batch_size)
    parts = [column.classify(batch.to(config.device)).cpu() for batch, _ in track(loader, column.name, len(loader))]
    return torch.cat(parts).numpy()


def table(scores: dict[str, np.ndarray], labels: np.ndarray) -> list[dict]:
    """A row a classifier: top-1 with its interval, top-5, mean per class."""
    rows = []
    for name, values in scores.items():
        accuracy = Accuracy.of(values.argmax(axis=1), labels, np.zeros(len(labels)))
        rows.append(
            {
                "model": name, "images": accuracy.images, "top1": accuracy.accuracy, "low": accuracy.interval[0],
                "high": accuracy.interval[1], "top5": disagreement.top_k(values, labels, 5),
                "mean_per_class": accuracy.mean_per_class,
            }
        )  # fmt: skip
    return rows


def draw(scores: dict[str, np.ndarray], labels: np.ndarray, split: Any, config: CompareConfig, names: list[str],
         folder: Path) -> dict:  # fmt: skip
    """The agreement of all, and the images that the first or the last alone has right: pictures, and their numbers."""
    where = f"{len(labels)} images of {Path(config.dataset).name}"
    matrix = disagreement.agreement({name: values.argmax(axis=1) for name, values in scores.items()})
    disagreement.plot_agreement(matrix, list(scores), f"Agreement, {where}").savefig(folder / "agreement.png", dpi=120)
    first, *_, last = scores
    sides = disagreement.wins(scores[first].argmax(axis=1), scores[last].argmax(axis=1), labels)
    for winner, loser, side, name in ((first, last, sides[0], "first"), (last, first, sides[1], "last")):
        picked = side[:: max(1, len(side) // config.shown)][: config.shown]  # from all over the split
        images = [decode_image(split[int(i)]["image"], "RGB", f"image {i} of {split.split}") for i in picked]
        shares = {n: torch.tensor(scores[n][picked]).softmax(dim=-1).numpy() for n in (first, last)}
        title = f"{winner} right and {loser} wrong: {len(side)} of {where}"
        figure = disagreement.plot_wins(images, [int(labels[i]) for i in picked], shares, names, title)
        figure.savefig(folder / f"{name}-alone-right.png", dpi=120)
    return {"agreement": matrix.tolist(), "alone_right": {first: len(sides[0]), last: len(sides[1])}}


def main() -> dict:
    config = parse_config(CompareConfig, description=__doc__)
    folder = output_folder(config.output, "clip")
    templates = read_templates(config.templates, config.dataset)
    if config.supervised:
        check_model(model_name(config.supervised), option="--supervised")
        _, called = short_names([config.clip, config.supervised], "--clip and --supervised")
    splits = load_splits(config.dataset, label_column=config.label_column)
    # first, as it may not know the classes, and to calibrate takes minutes
    supervised = [supervised_column(config, called, splits.class_names)] if config.supervised else []
    clip = load_clip(config.clip)
    columns = [clip_column(clip, splits.class_names, templates, config.device)]
    if config.convert != "none":
        columns.append(clip_column(converted(clip, config, splits), splits.class_names, templates, config.device))
    columns += supervised
    known = np.all([column.known for column in columns], axis=0)
    split = splits.test.shuffle(seed=0).take(config.images) if config.images else splits.test
    split = split.select(np.flatnonzero(known[np.array(split["label"])]))
    if not len(split):
        raise InputError(f"--images {config.images}: none that were drawn is of a class that all know: draw more")
    names = [readable(name) for name in splits.class_names]
    if not known.all():
        missing = ", ".join(name for name, is_known in zip(names, known, strict=True) if not is_known)
        log0(f"counted on the {len(split)} images of {known.sum()} classes that all know; not on those of {missing}")
    labels = np.array(split["label"])
    # of the classes that all know: a network that knows more would only have more to be wrong about
    scores = {c.name: np.where(known, scores_of(c, split, config), -np.inf) for c in columns}
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(scores, labels)
    numbers = draw(scores, labels, split, config, names, folder)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    log0(f"\n{'model':50s} top-1 (95 % interval)           top-5   mean per class   {len(labels)} images")
    for row in rows:
        interval = f"{row['top1']:.2%} ({row['low']:.2%} to {row['high']:.2%})"
        log0(f"{row['model']:50s} {interval:30s} {row['top5']:.2%}   {row['mean_per_class']:.2%}")
    result = {"output": str(folder), "classes": int(known.sum()), "templates": templates, "rows": rows, **numbers}
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    run(main)
