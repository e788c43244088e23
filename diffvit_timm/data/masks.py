"""Datasets for semantic segmentation: each image has a mask, whose pixels are class indices.

    FOLDER/train/images/1.jpg, FOLDER/train/masks/1.png         # pairs have one name, whatever their extension
    FOLDER/test/images/2.jpg, FOLDER/test/masks/2.png           # or val, if there is no test split
    FOLDER/classes.txt                                          # optional: one class name per line

A dataset on the Hub, or a folder of parquet files, has a column of images and one of masks instead. Pixels of value 255
are not counted, neither in training nor in the test.
"""

import contextlib
import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

from ..console import track
from ..errors import InputError
from .datasets import load_all_splits
from .decoding import decode_image
from .folders import SPLITS
from .image_files import is_image
from .images import MODES
from .label_checks import VAL_NAMES

__all__ = ["IGNORED", "MaskedImages", "MaskedSplits", "decode_mask", "load_masks"]

IGNORED = 255  # mask value of pixels without a class
MASK_COLUMNS = ("mask", "masks", "annotation", "label", "segmentation", "segmentation_mask")
TEST_NAMES = ("test", *VAL_NAMES)
IMAGES, MASKS = "images", "masks"


@dataclasses.dataclass(frozen=True)
class MaskedSplits:
    """A dataset for segmentation.

    Attributes:
        train, test: stored rows with the undecoded columns 'image' and 'mask'.
        class_names: names of the classes, in the order of the mask values.
    """

    train: Dataset
    test: Dataset
    class_names: list[str]


def load_masks(name: str, mask_column: str = "auto", dataset_config: str | None = None) -> MaskedSplits:
    """Load images and masks.

    Args:
        name: Hub name, folder of parquet files, or folder of images and masks.
        mask_column: column of the masks; 'auto' is the one with a usual name. A folder of images has none.
        dataset_config: configuration of a dataset that has several.

    Raises:
        InputError: no images or masks, an image without its mask or the other way round, no images to train or to test
            on, or masks that are no class indices.
    """
    folder = Path(name).expanduser()
    if any((path / IMAGES).is_dir() for path in _split_folders(folder).values()):
        splits = {split: _load_pairs(path, name) for split, path in _split_folders(folder).items()}
    else:
        splits = _load_columns(name, mask_column, dataset_config)
    test = next((splits[split] for split in TEST_NAMES if split in splits), None)
    if "train" not in splits or test is None:
        raise InputError(f"`dataset={name}` has the splits {list(splits)}, but needs train, and test or validation")
    return MaskedSplits(splits["train"], test, _class_names(folder, name, splits["train"]))


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits of a folder of images and masks."""
    if not folder.is_dir():
        return {}
    return {SPLITS[path.name.lower()]: path for path in sorted(folder.iterdir()) if path.name.lower() in SPLITS}


def _load_pairs(folder: Path, name: str) -> Dataset:
    """Pair the images and the masks of a split by their names without the extension."""
    found: list[dict[str, Path]] = []
    for kind in (IMAGES, MASKS):
        if not (folder / kind).is_dir():
            raise InputError(f"`dataset={name}`: {folder} has no folder {kind}")
        # There may be other files, such as a table of labels.
        files = [path for path in sorted((folder / kind).iterdir()) if path.is_file() and is_image((path.name,))]
        found.append({path.stem: path for path in files})
        if len(found[-1]) < len(files):
            stem = Counter(path.stem for path in files).most_common(1)[0][0]
            raise InputError(f"`dataset={name}`: {folder / kind} has several files named {stem}: keep one")
    images, masks = found
    for kind, other, stems in ((IMAGES, MASKS, images.keys() - masks), (MASKS, IMAGES, masks.keys() - images)):
        if stems:
            raise InputError(
                f"`dataset={name}`: {folder / kind} has {min(stems)}, which {folder / other} does not have: each image "
                "needs one mask of the same name"
            )
    if not images:
        raise InputError(f"`dataset={name}`: {folder / IMAGES} is empty")
    columns = {"image": images, "mask": masks}
    rows = {column: [{"path": str(files[stem]), "bytes": None} for stem in images] for column, files in columns.items()}
    return Dataset.from_dict(rows, features=Features({column: ImageFeature(decode=False) for column in columns}))


def _load_columns(name: str, mask_column: str, dataset_config: str | None) -> dict[str, Dataset]:
    """Load the splits of a dataset with a column of images and one of masks."""
    loaded = load_all_splits(name, dataset_config)
    features = next(iter(loaded.values())).features
    images = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if mask_column == "auto":
        mask_column = next((column for column in MASK_COLUMNS if column in images), "")
    others = [column for column in images if column != mask_column]
    if mask_column not in images or not others:
        raise InputError(
            f"`dataset={name}` has the image columns {images}, but needs one of images and one of masks: name the "
            "masks with `mask_column`, or give a folder with train/images and train/masks"
        )
    if len(others) > 1:
        raise InputError(f"`dataset={name}` has several columns of images, {others}: keep one")
    splits = {}
    for split, data in loaded.items():
        kept = data.select_columns([others[0], mask_column])
        renamed = kept.rename_columns({others[0]: "image", mask_column: "mask"})
        splits[split] = renamed.cast(Features({column: ImageFeature(decode=False) for column in ("image", "mask")}))
    return splits


def _class_names(folder: Path, name: str, train: Dataset) -> list[str]:
    """Return the names of classes.txt; without it, the values of the training masks from 0 to the largest."""
    file = folder / "classes.txt"
    masks = track(enumerate(train), "reading the training masks", len(train))
    largest = max(_largest_value(row["mask"], f"mask {i} of train") for i, row in masks)
    if not file.is_file():
        if not largest:
            raise InputError(f"`dataset={name}`: all training masks have only the value 0, so there is one class")
        return [f"class {i}" for i in range(largest + 1)]
    with contextlib.suppress(UnicodeDecodeError):
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(names) <= max(1, largest):
            raise InputError(f"{file} has {len(names)} names, but the training masks have values up to {largest}")
        return names
    raise InputError(f"{file} is not UTF-8 text: write one class name per line")


def _largest_value(mask: dict, where: str) -> int:
    values = decode_mask(mask, where)
    return int(np.max(values, initial=0, where=values != IGNORED))


def decode_mask(mask: dict, where: str) -> np.ndarray:
    """Decode a mask, without any conversion of its values.

    Args:
        mask: dict with the `bytes` or the `path` of the mask.
        where: its name in the error, if it is not a file of its own.

    Returns:
        Class indices, (H, W), uint8.

    Raises:
        InputError: the mask does not decode, has several channels, or values above 255.
    """
    name = mask["path"] if mask["path"] and not mask["bytes"] else where
    try:
        with Image.open(io.BytesIO(mask["bytes"]) if mask["bytes"] else mask["path"]) as image:
            values = np.asarray(image)  # of a palette, the indices
    except Exception as error:  # decoders raise anything
        raise InputError(f"{name} does not decode ({error}): fix it or leave it out") from error
    if values.ndim != 2:
        raise InputError(
            f"{name} has {values.shape[-1]} channels: a mask has one, whose values are class indices (PNG of mode L or "
            "P)"
        )
    if values.max(initial=0) > IGNORED:
        raise InputError(f"{name} has the value {values.max()}: class indices go up to 254, and 255 is not counted")
    return values.astype(np.uint8)


class MaskedImages(torch.utils.data.Dataset):
    """The images of a split as a network reads them, with their masks.

    Args:
        split: a split of `MaskedSplits`.
        classes: number of classes.
        transform: function of an image (H, W, 3) or (H, W), a mask (H, W), both uint8, and a seed, that returns both;
            None keeps the mask and resizes the image.
        config: data settings of the network, from `model_data_config`.
        seed: seed of the augmentation, which depends only on the seed, the epoch and the index of the image.
    """

    def __init__(self, split: Dataset, classes: int, config: dict, transform: Any = None, seed: int = 0) -> None:
        self.split, self.classes, self.transform, self.seed, self.epoch = split, classes, transform, seed, 0
        channels, *self.size = config["input_size"]
        self.mode = MODES[channels]
        self.mean, self.std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, (C, h, w), normalised, and the mask, (h, w) or, without a transform, (H, W), int64.

        Raises:
            InputError: the image or the mask does not decode, their sizes differ, or the mask has an unknown value.
        """
        row, name = self.split[index], f"{index} of {self.split.split or 'the split'}"
        image = decode_image(row["image"], self.mode, f"image {name}")
        mask = decode_mask(row["mask"], f"mask {name}")
        where = row["mask"]["path"] or f"mask {name}"
        if mask.shape != image.size[::-1]:
            raise InputError(
                f"{where} has {mask.shape[::-1]} pixels, but its image has {image.size}: they must be equal"
            )
        if (unknown := mask[(mask >= self.classes) & (mask != IGNORED)]).size:
            raise InputError(f"{where} has the value {unknown[0]}, but there are only {self.classes} classes")
        if self.transform is None:
            pixels = np.asarray(image.resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC))
        else:
            seed = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0]
            pixels, mask = self.transform(np.asarray(image), mask, int(seed))
        tensor = torch.tensor(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1).float() / 255
        return (tensor - self.mean) / self.std, torch.from_numpy(mask.astype(np.int64))


def collate(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """Stack the images of a batch; the masks may have different sizes."""
    images, masks = zip(*rows, strict=True)
    return torch.stack(images), list(masks)
