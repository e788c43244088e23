"""scikit-learn's bundled handwritten digits, for the demo: 1,797 grey images of 8 x 8 pixels."""

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature

from .decoding import png_image
from .splits import SPLIT_SEED, Splits, hold_out

__all__ = ["digits_splits"]


def digits_splits(seed: int = SPLIT_SEED) -> tuple[Splits, Splits]:
    """Divide the digits into data to pretrain on and data to fine-tune on, which share the test split.

    Args:
        seed: seed of the division.

    Returns:
        (source, target): one third of the training images to pretrain on, two thirds to fine-tune on.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(num_classes=10)})
    rows: dict[str, list] = {"image": [], "label": digits.target.tolist()}
    for pixels in digits.images:
        rows["image"].append(png_image((pixels * 255 / 16).astype(np.uint8)))

    def divide(data: Dataset, share: float) -> tuple[Dataset, Dataset]:
        parts = data.train_test_split(test_size=share, stratify_by_column="label", seed=seed)
        return parts["train"], parts["test"]

    rest, test = divide(Dataset.from_dict(rows, features=features), 0.2)
    target, source = divide(rest, 1 / 3)
    names = features["label"].names
    source_splits, target_splits = (
        Splits(*hold_out(part, 0.1, "digits"), test=test, class_names=names) for part in (source, target)
    )
    return source_splits, target_splits
