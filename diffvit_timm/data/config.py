"""Options of a dataset: where its images come from, and what a training makes of them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import require_at_least
from ..options import CheckedOptions
from .steps import parse_policy

if TYPE_CHECKING:
    from .splits import EvaluationSplit, Splits

__all__ = ["SHORT_NAMES", "DataConfig", "DatasetConfig"]

# Options that each short name of a dataset stands for.
SHORT_NAMES: dict[str, dict[str, Any]] = {
    "pets": {"dataset": "timm/oxford-iiit-pet"},
    "cifar10": {"dataset": "uoft-cs/cifar10"},
    "cifar100": {"dataset": "uoft-cs/cifar100"},
    "mnist": {"dataset": "ylecun/mnist"},
    "fashion_mnist": {"dataset": "zalando-datasets/fashion_mnist"},
    "bach": {"dataset": "1aurent/BACH", "test_share": 0.25},  # the images of its test split have no labels
    "clutter": {"dataset": "ylecun/mnist+clutter"},
}

VAL_SHARE = 0.1  # share of the training images that become validation images if there is no such split
CLUTTER = "+clutter"  # end of the name of a dataset of digits that are put among distractors


@dataclasses.dataclass(frozen=True)
class DatasetConfig(CheckedOptions):
    """Where the images and labels come from. Every command that reads a dataset has these options."""

    dataset: str
    """Dataset on the Hub (or pets, cifar10, cifar100, mnist, fashion_mnist, bach), or a folder of parquet or images.
    clutter: mnist among pieces of other digits; FOLDER+clutter: the same for your own digits."""
    dataset_config: str | None = None
    """Dataset configuration, as named on its Hub page or in its README.md; needed if there are several."""
    image_column: str = "auto"
    """Column of the images; auto: the only image column."""
    label_column: str = "auto"
    """Column of the class labels; auto: label, or fine_label (CIFAR-100), or else the only column of class labels. For
    several labels per image (diffvit train): a column of lists of labels, or several true/false columns, as A,B,C. auto
    takes all true/false columns (at least two) if there is no column of class labels."""
    test_share: float = 0.0
    """Share of the training images to test on, instead of the dataset's test split; 0: use the test split."""
    group_column: str | None = None
    """Column with group ids (e.g. patient); a group never spans two splits."""

    def __post_init__(self) -> None:
        """Replace a short name by what it stands for, and check the options."""
        super().__post_init__()
        if not Path(self.dataset).is_dir():  # a folder of that name comes first
            for name, value in SHORT_NAMES.get(self.dataset, {}).items():
                if name == "dataset" or self.is_default(name):
                    object.__setattr__(self, name, value)  # frozen for everybody else
        self.require("test_share", 0 <= self.test_share < 1, "must be in [0, 1)")

    def load(self, stream: int = 0, val_share: float = VAL_SHARE, multi_label: bool = False) -> "Splits":
        """Load the splits; arguments and errors as in `load_splits` and `clutter_splits`.

        Digits among distractors have one label per image.
        """
        from .datasets import load_splits  # not above: parsing options does not need datasets

        name = self.dataset.removesuffix(CLUTTER) if self.has_clutter else self.dataset
        columns = self.image_column, self.label_column
        splits = load_splits(
            name,
            *columns,
            stream,
            self.test_share,
            self.group_column,
            self.dataset_config,
            val_share,
            multi_label and not self.has_clutter,
        )
        if not self.has_clutter:
            return splits
        from .clutter import clutter_splits

        return clutter_splits(splits)

    def load_test(self) -> "EvaluationSplit":
        """Load only the test images, so that there need not be any training images.

        Raises:
            InputError: as `load_evaluation_split`; or a group column without a share to test on.
        """
        from .datasets import load_evaluation_split
        from .splits import EvaluationSplit

        if self.test_share or self.has_clutter:
            splits = self.load()
            name = f"{self.test_share:.0%} of train" if self.test_share else str(splits.test.split)
            return EvaluationSplit(splits.test, name, splits.class_names)
        self.require_default("group_column", "has no effect on the test images without `test_share`")
        return load_evaluation_split(self.dataset, self.image_column, self.label_column, self.dataset_config)

    @property
    def has_clutter(self) -> bool:
        """Whether the images are put among distractors."""
        return self.dataset.endswith(CLUTTER) and not Path(self.dataset).is_dir()


@dataclasses.dataclass(frozen=True)
class DataConfig(DatasetConfig):
    """Where the images come from, and how they are augmented."""

    max_train_samples: int = 0
    """Number of training images to use, drawn at random with the class proportions of the dataset; 0: all."""
    samples_per_class: int = 0
    """Number of training images per class, drawn at random; a class with fewer images keeps all of them; 0: all."""
    sample_seed: int = 0
    """Seed of the draw of max_train_samples or samples_per_class."""
    val_share: float = VAL_SHARE
    """Share of the training images to validate on, if the dataset has no validation split; 0: validate on the test
    images, which needs keep_weights=last."""
    max_val_samples: int = 0
    """Number of validation images to use, drawn at random with the class proportions of the dataset; 0: all."""
    label_noise: float = 0.0
    """Share of wrong labels in the training and validation images; test labels are not changed."""
    input_noise: float = 0.0
    """Standard deviation of Gaussian noise added to all images, where black is 0 and white is 1."""
    augment: str = "crop+flip"
    """none, or steps joined by +: crop, shift, flip, color, randaugment, autoaugment, trivialaugment, erase, cutout."""
    crop_scale: float = 0.5
    """Smallest share of the image area that a random crop keeps."""
    repeated_augmentation: int = 1
    """Number of augmented views per image in an epoch; an epoch then uses fewer different images."""
    class_balance: Literal["none", "sampler", "loss"] = "none"
    """For classes of unequal size. sampler: draw each class equally often, with replacement; loss: weight the loss of
    each class by the inverse of its size. The balanced accuracy (mean over the classes) then chooses the best epoch."""
    stream: int = 0
    """Stream the training images instead of storing them on disk, with this many images per epoch; 0: store them."""
    workers: int = 2
    """Number of processes that load images; 0: the training process loads them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, repeated_augmentation=self.repeated_augmentation)
        for name in (
            "max_train_samples", "max_val_samples", "samples_per_class", "sample_seed", "input_noise", "stream",
            "workers",
        ):  # fmt: skip
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("label_noise", "val_share"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        self.require("crop_scale", 0 < self.crop_scale <= 1, "must be in (0, 1]")
        crops = "crop" in parse_policy(self.augment)
        self.require("crop_scale", crops or self.is_default("crop_scale"), "has no effect without `augment=crop`")
        both = self.max_train_samples and self.samples_per_class
        self.require("samples_per_class", not both, "and `max_train_samples` exclude each other: give one of them")
        draws = bool(self.max_train_samples or self.samples_per_class)
        self.require("sample_seed", draws or not self.sample_seed, "has no effect without `samples_per_class`")
        draws_copies = self.repeated_augmentation > 1 and self.class_balance == "sampler"
        self.require("class_balance", not draws_copies, "and `repeated_augmentation` both draw the images: give one")
        if self.stream:
            self.require("dataset", not self.has_clutter, "needs stored images: leave out `stream`")
            for name in (
                "max_train_samples", "samples_per_class", "repeated_augmentation", "test_share", "group_column",
                "label_noise", "input_noise", "class_balance",
            ):  # fmt: skip
                self.require(name, self.is_default(name), "needs stored images: leave out `stream`")
