"""Datasets with wrong labels or noisy pixels, to measure how a model copes with bad data."""

import zlib
from typing import TYPE_CHECKING

import numpy as np

from .decoding import decode_image, png_image

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["with_input_noise", "with_label_noise"]

NOISE_SEED = 0  # the noise is part of the data: it is the same for all training seeds


def with_label_noise(split: "Dataset", rate: float) -> "Dataset":
    """Replace some labels with another class. All other classes are equally likely (symmetric noise).

    Args:
        split: a split of `Splits`.
        rate: fraction of the labels to replace, in [0, 1].

    Returns:
        The split with the new labels.
    """
    labels, feature = np.array(split["label"][:]), split.features["label"]
    rng = np.random.default_rng(NOISE_SEED)
    wrong = rng.permutation(len(labels))[: round(rate * len(labels))]
    labels[wrong] = (labels[wrong] + rng.integers(1, feature.num_classes, len(wrong))) % feature.num_classes
    return split.remove_columns("label").add_column("label", labels.tolist(), feature=feature)


def with_input_noise(split: "Dataset", deviation: float) -> "Dataset":
    """Add Gaussian noise to all images, clipped and rounded to 8 bits. Grey images stay grey.

    The noise of an image depends only on its pixels. The noisy images are stored as PNG in the cache of `datasets`.

    Args:
        split: a split of `Splits`.
        deviation: standard deviation of the noise per pixel and channel, for pixels in [0, 1].

    Returns:
        The split with the noisy images.
    """
    return split.map(
        _add_noise,
        with_indices=True,
        fn_kwargs={"deviation": deviation, "split": str(split.split)},
        features=split.features,
        desc=f"adding noise of {deviation:g} to {split.split}",
    )


def _add_noise(row: dict, index: int, deviation: float, split: str) -> dict:
    pixels = np.asarray(decode_image(row["image"], "RGB", f"image {index} of split {split}"))  # (H, W, 3)
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]  # a grey image
    # Seeded by the pixels, so that the noise does not depend on the order of the images.
    rng = np.random.default_rng((NOISE_SEED, zlib.crc32(pixels.tobytes())))
    noisy = (pixels + 255 * deviation * rng.standard_normal(pixels.shape)).round().clip(0, 255).astype(np.uint8)
    return {"image": png_image(noisy)}
