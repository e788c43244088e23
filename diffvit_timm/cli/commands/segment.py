"""Train a semantic segmentation head on networks, and compare them by mean intersection over union.

    diffvit segment vit_small_patch16_dinov3.lvd1689m --dataset FOLDER              # a linear head on frozen features
    diffvit segment PLAIN DIFF --dataset FOLDER --head conv --fine-tune             # two networks, all weights
    diffvit segment RUN --dataset USER/NAME --mask-column annotation

FOLDER has train/images/1.jpg with train/masks/1.png, and the same below test. The pixels of a mask are class indices,
and those of value 255 do not count. All networks get the same images, augmentation and number of updates. Differences
are those to the first network, on the same test images. The last weights are tested and saved.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro
from safetensors.torch import save_file

from ...console import log0
from ...errors import require_device
from ...files import disk_errors, write_atomically, write_csv
from ...models.pretrained import check_model, load_model, save_pretrained, short_names, size_arguments
from ...models.segmentation import SegmentationNetwork
from ...options import CheckedOptions
from ...output import output_folder
from ...training.segmentation_config import SegmentationOptions
from ..tables import points_with_interval, share_with_interval

if TYPE_CHECKING:
    from ...data.masks import MaskedSplits
    from ...inspection.iou import Segmentations

SHOWN = 6  # test images in the picture


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """timm model names with their pretrained tags, hf-hub:NAME, folders of weights, or run folders."""
    dataset: str
    """Dataset on the Hub, folder of parquet, or folder of images and masks."""
    training: Annotated[SegmentationOptions, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=SegmentationOptions
    )
    mask_column: str = "auto"
    """Column of the masks; auto: mask, annotation, label or segmentation."""
    dataset_config: str | None = None
    """Dataset configuration, as named on its Hub page or in its README.md; needed if there are several."""
    img_size: tuple[int, ...] = ()
    """Image size in pixels: one number, or height and width; default: the size of the model."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    output: str = "auto"
    """Folder of the weights, tables and pictures, new or empty; auto: runs/segment-DATE-TIME."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("models", bool(self.models), "is empty: name at least one")
        self.require_image_size("img_size")


def main(options: Options) -> dict:
    require_device(options.device)
    names = short_names(options.models, "models")
    for model in options.models:
        check_model(model, parameter="models")
    with output_folder(options.output, "segment") as folder:
        return _compare(options, names, folder)


def _compare(options: Options, names: list[str], folder: Path) -> dict:
    from ...data.masks import load_masks  # not above: --help does not wait for datasets

    splits = load_masks(options.dataset, options.mask_column, options.dataset_config)
    log0(
        f"{options.dataset}: {len(splits.train):,} training and {len(splits.test):,} test images, "
        f"{len(splits.class_names)} classes"
    )
    counts: dict[str, Segmentations] = {}
    shown: dict[str, list] = {}
    rows = []
    for name, given in zip(names, options.models, strict=True):
        network = _network(options, given, len(splits.class_names))
        counts[name], shown[name] = _train_and_test(options, name, network, splits, folder)
        rows.append(_row(options, name, network, counts))
    write_csv(folder / "segmentation.csv", list(rows[0]), rows)
    per_class = {name: _by_class(own, splits.class_names) for name, own in counts.items()}
    result = {"models": options.models, "dataset": options.dataset, "rows": rows, "iou_per_class": per_class}
    write_atomically(folder / "segmentation.json", json.dumps(result, indent=1) + "\n")
    _draw(options, splits, shown, folder)
    _print_table(rows, len(splits.test))
    log0(
        f"\n{folder}: the table is in segmentation.csv and segmentation.json, the picture in predictions.png, and a\n"
        "folder per network has its weights and metrics.jsonl."
    )
    return {"output": str(folder), "images": len(splits.test), "rows": rows}


def _network(options: Options, given: str, classes: int) -> SegmentationNetwork:
    """Load a network, and give it a head that is the same for every network of this width."""
    backbone = load_model(given, parameter="models", **size_arguments(options.img_size))
    torch.manual_seed(options.training.seed)
    training = options.training
    return SegmentationNetwork(backbone, classes, training.head, training.layers, not training.fine_tune)


def _train_and_test(
    options: Options, name: str, network: SegmentationNetwork, splits: "MaskedSplits", folder: Path
) -> tuple["Segmentations", list]:
    """Train, save and test a network; returns the counted pixels, and the first predicted masks."""
    from ...training.segmentation import measure_segmentation, train_segmentation

    place = folder / name.replace("/", "-")

    def log(numbers: dict[str, float]) -> None:
        place.mkdir(exist_ok=True)
        log0(f"{name}: epoch {numbers['epoch']}, loss {numbers['loss']:.4f}")
        with (place / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(numbers) + "\n")

    train_segmentation(network, splits, options.training, options.device, log, name)
    with disk_errors("the weights", place, "free space and start again"):
        save_pretrained(network.backbone, place / "backbone", None)
        save_file(network.head.state_dict(), place / "head.safetensors")
    return measure_segmentation(network, splits, options.training, options.device, name, SHOWN)


def _row(
    options: Options, name: str, network: SegmentationNetwork, counts: dict[str, "Segmentations"]
) -> dict[str, Any]:
    """Return the row of the newest network; differences are those to the first."""
    from ...inspection.iou import mean_iou, paired_iou_difference

    iou, low, high = mean_iou(counts[name])
    first = next(iter(counts))
    difference = (None,) * 3 if name == first else paired_iou_difference(counts[name], counts[first])
    return {
        "model": name, "head": options.training.head, "fine_tuned": options.training.fine_tune,
        "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "mean_iou": iou, "low": low, "high": high, "pixel_accuracy": counts[name].pixel_accuracy,
        **dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True)),
    }  # fmt: skip


def _by_class(counts: "Segmentations", class_names: list[str]) -> dict[str, float | None]:
    values = counts.per_class.tolist()
    return {name: None if value != value else value for name, value in zip(class_names, values, strict=True)}


def _draw(options: Options, splits: "MaskedSplits", shown: dict[str, list], folder: Path) -> None:
    from ...data.decoding import decode_image
    from ...data.masks import IGNORED, decode_mask
    from ...inspection.figures.segmentation import plot_segmentations

    rows = [splits.test[i] for i in range(len(next(iter(shown.values()))))]
    images = [decode_image(row["image"], "RGB", "image") for row in rows]
    masks = {"true": [decode_mask(row["mask"], "mask") for row in rows], **shown}
    title = f"The first test images of {Path(options.dataset).name}, {options.training.head} head"
    plot_segmentations(images, masks, splits.class_names, IGNORED, title, folder / "predictions.png")


def _print_table(rows: list[dict[str, Any]], images: int) -> None:
    log0(
        f"\n{images:,} test images; in parentheses: 95 % intervals by bootstrap over the images; difference: to the\n"
        "first network, in points, paired by image"
    )
    width = max(len("model"), *(len(row["model"]) for row in rows))
    log0(f"\n{'model':{width}s}  {'mean IoU':26s} pixels right  difference")
    for row in rows:
        numbers = f"{share_with_interval(row, 'mean_iou'):26s} {row['pixel_accuracy']:12.2%}"
        log0(f"{row['model']:{width}s}  {numbers}  {points_with_interval(row)}")
