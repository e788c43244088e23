"""Compare CLIP's zero-shot classifier with a converted CLIP and with a supervised network, on the same images.

    diffvit compare clip --clip RN50:openai --supervised resnet50.a1_in1k                      # on Pets
    diffvit compare clip --supervised resnet50.a1_in1k --dataset imagenet/val --precision fp16
    diffvit compare clip --supervised resnet50.a1_in1k --dataset PHOTOS                        # PHOTOS/CLASS/*.jpg
    diffvit compare clip --clip ViT-B-16:openai --convert calibrated --supervised RUN
    diffvit compare clip --clip ViT-B-16:openai --convert mirror --dataset FOLDER --images 500

CLIP is asked for the class names of the dataset. A supervised network that was trained on the dataset knows them too.
A network of ImageNet is asked for the classes that WordNet knows by the same names, and only their images count. Of
ImageNet, WordNet ids and names with synonyms are understood; CLIP is asked for one of the names. Only the test split is
read; without one the validation split, and without any split all images.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from ...console import log0
from ...conversion.weights import READS_IMAGES
from ...data.config import DatasetConfig
from ...data.splits import EvaluationSplit
from ...errors import InputError, require_at_least, require_device, require_files
from ...files import write_atomically, write_csv
from ...models.pretrained import check_model, load_model, short_names
from ...options import CheckedOptions
from ...output import output_folder
from ...studies.timing import PRECISIONS, emulation_note
from ...zero_shot.class_names import read_class_map
from ...zero_shot.clip import Clip, check_clip, load_clip
from ...zero_shot.comparison import (
    Classifier,
    accuracy_rows,
    clip_classifier,
    convert_clip,
    draw_disagreement,
    split_logits,
    supervised_classifier,
)
from ...zero_shot.imagenet_names import spoken_names
from ...zero_shot.prompts import auto_templates, read_templates

LISTED = 20  # classes that a message names


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    clip: str = "RN50:openai"
    """ARCHITECTURE:TAG of open_clip, hf-hub:NAME, or a folder of a CLIP model."""
    supervised: str | None = None
    """timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder."""
    convert: Literal["none", "svd", "slice", "calibrated", "mirror", "contrast"] = "none"
    """Also compare CLIP with its image tower converted by this method; mirror, contrast: to version 2."""
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: DatasetConfig("timm/oxford-iiit-pet")
    )
    templates: str = "auto"
    """auto (by the dataset's name; imagenet for classes with WordNet ids), pet, cifar, fashion, mnist, imagenet, plain,
    or a file, one sentence per line."""
    class_map: Path | None = None
    """YAML file of `class: [ImageNet index, ...]`, for classes with other names in WordNet."""
    images: int = 0
    """Number of test images, drawn at random; 0: all."""
    calibration_images: int = 256
    """Number of training images, without labels, that the conversions calibrated and contrast look at."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of weights and images; the texts stay in fp32. bf16, fp16: also compared with fp32."""
    shown: int = 5
    """Largest number of images in a picture."""
    batch_size: int = 32
    """Number of images per batch."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    output: str = "auto"
    """Folder of the tables and pictures, new or empty; auto: runs/clip-DATE-TIME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, calibration_images=self.calibration_images, shown=self.shown, batch_size=self.batch_size)
        require_at_least(0, images=self.images)
        if self.supervised is None and self.convert == "none":
            raise InputError("there is nothing to compare `clip` with: pass `supervised` or `convert`")
        if self.class_map is not None:
            self.require("class_map", self.supervised is not None, "has no effect without `supervised`")
            require_files("class_map", [self.class_map.expanduser()])
        has_two_models = self.supervised != self.clip
        self.require("supervised", has_two_models, "and `clip` name the same folder: give a supervised network")


def main(options: Options) -> dict:
    require_device(options.device)
    with output_folder(options.output, "clip") as folder:
        return _compare(options, folder)


def _compare(options: Options, folder: Path) -> dict:
    given = None if options.templates == "auto" else read_templates(options.templates)
    if options.supervised is not None:
        check_model(options.supervised, parameter="supervised")
    check_clip(options.clip)
    test = options.data.load_test()
    names = _spoken_names(options, test)
    templates = given or auto_templates(options.data.dataset, test.class_names)
    classifiers = _make_classifiers(options, test, names, templates)
    known = np.all([classifier.known for classifier in classifiers], axis=0)  # (classes,)
    split = _choose_images(options, test, known, names)
    labels = np.array(split["label"][:])
    if note := emulation_note(options.precision, options.device):
        log0(note)
    logits = _logits(options, classifiers, known, split)
    exact = None
    if options.precision != "fp32":
        exact, logits = logits, _logits(options, _cast(classifiers, options.precision), known, split)
    where = f"{len(labels):,} images of {Path(options.data.dataset).name} (split: {test.name})"
    rows = accuracy_rows(logits, labels, exact)
    pictured = where if options.precision == "fp32" else f"{where}, {options.precision}"
    numbers = draw_disagreement(logits, labels, split, names, pictured, folder, options.shown)
    result = {
        "output": str(folder), "split": test.name, "classes": int(known.sum()), "templates": templates,
        "precision": options.precision, "rows": rows, **numbers,
    }  # fmt: skip
    _write(result, folder)
    _print(result, where)
    return result


def _spoken_names(options: Options, test: EvaluationSplit) -> list[str]:
    """Return the words by which CLIP is asked for the classes, and say if two classes have the same."""
    try:
        names = spoken_names(test.class_names)
    except InputError as error:
        raise InputError(f"`dataset={options.data.dataset}`: {error}") from error
    counts = Counter(name.lower() for name in names)
    if twice := [name for name, count in counts.items() if count > 1]:
        log0(f"CLIP is asked for several classes by the same words, so it cannot tell them apart: {_listed(twice)}")
    return names


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if names[LISTED:] else "")


def _cast(classifiers: list[Classifier], precision: str) -> list[Classifier]:
    return [classifier.cast(PRECISIONS[precision]) for classifier in classifiers]


def _logits(options: Options, classifiers: list[Classifier], known: np.ndarray, split: Any) -> dict[str, np.ndarray]:
    """Compute the logits of each classifier, which chooses among the classes that all know: only these count."""
    return {
        c.name: np.where(known, split_logits(c, split, options.batch_size, options.device), -np.inf)
        for c in classifiers
    }


def _make_classifiers(
    options: Options, test: EvaluationSplit, names: list[str], templates: tuple[str, ...]
) -> list[Classifier]:
    """Return CLIP, converted CLIP if asked for, and the supervised network if there is one."""
    train = _calibration_split(options)
    supervised = []
    if options.supervised is not None:  # first, because it may not know the classes, and a conversion takes minutes
        _, name = short_names([options.clip.removeprefix("local-dir:"), options.supervised])
        class_map = read_class_map(options.class_map, test.class_names) if options.class_map else None
        model = load_model(options.supervised, parameter="supervised")
        try:
            supervised = [supervised_classifier(model, name, test.class_names, class_map, options.device)]
        except InputError as error:
            raise InputError(f"`supervised={options.supervised}`: {error}") from error
    clip = load_clip(options.clip)
    clips = [clip] if options.convert == "none" else [clip, _convert(clip, options, train)]
    return [clip_classifier(one, names, templates, options.device) for one in clips] + supervised


def _calibration_split(options: Options) -> Any:
    """Load the training images if the conversion reads some."""
    if options.convert not in READS_IMAGES:
        return None
    try:
        return options.data.load().train
    except InputError as error:
        raise InputError(f"`convert={options.convert}` reads training images: {error}") from error


def _convert(clip: Clip, options: Options, train: Any) -> Clip:
    try:
        return convert_clip(clip, options.convert, train, options.calibration_images, options.batch_size)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"`convert={options.convert}`: {error}") from error


def _choose_images(options: Options, test: EvaluationSplit, known: np.ndarray, names: list[str]) -> Any:
    """Draw test images, and keep those of the classes that all classifiers know."""
    count = min(options.images or len(test.images), len(test.images))
    split = test.images.shuffle(seed=0).take(count) if options.images else test.images
    split = split.select(np.flatnonzero(known[np.array(split["label"][:])]))
    if not len(split):
        raise InputError(f"`images={options.images}` draws no image of a class that all classifiers know: draw more")
    if not known.all():
        missing = [name for name, is_known in zip(names, known, strict=True) if not is_known]
        log0(
            f"counted on the {len(split)} images of {known.sum()} classes that all know; not on those of "
            f"{_listed(missing)}"
        )
    return split


def _write(result: dict[str, Any], folder: Path) -> None:
    write_csv(folder / "table.csv", list(result["rows"][0]), result["rows"])
    write_atomically(folder / "result.json", json.dumps(result, indent=1) + "\n")


def _print(result: dict[str, Any], where: str) -> None:
    """Print the accuracies, the disagreement and the files."""
    precision = result["precision"]
    lowered = precision != "fp32"
    width = max(len("model"), *(len(row["model"]) for row in result["rows"]))
    log0(
        f"\n{where}, {result['classes']} classes, {precision}\n"
        "top-1: accuracy with its 95 % interval; top-5: images whose class is among the five most likely;\n"
        "per class: mean of the accuracies of the classes."
        + (
            f"\nfp32: top-1 accuracy in fp32; same: images with the same class in {precision} and fp32."
            if lowered
            else ""
        )
    )
    titles = f"{'fp32':>9s} {'same':>7s}" if lowered else ""
    log0(f"\n{'model':{width}s}  {'top-1':28s}  {'top-5':>7s}  per class{titles}")
    for row in result["rows"]:
        interval = f"{row['top1']:.2%} ({row['low']:.2%} to {row['high']:.2%})"
        exact = f"{row['top1_fp32']:9.2%} {row['same_as_fp32']:7.2%}" if lowered else ""
        log0(f"{row['model']:{width}s}  {interval:28s}  {row['top5']:7.2%}  {row['mean_per_class']:9.2%}{exact}")
    counts = "; ".join(f"{name}: {count}" for name, count in result["alone_right"].items())
    log0(f"\nImages that only the first or only the last gets right: {counts}.")
    log0(
        f"{result['output']}: the table is in table.csv and result.json, the agreement in agreement.png, the images\n"
        "that only one gets right in first-alone-right.png and last-alone-right.png."
    )
