"""Datasets with wrong labels or noisy pixels, the same for every training: what does a model make of bad data?"""

import io
import zlib

import numpy as np
from datasets import Dataset
from PIL import Image

from .images import decode_image

__all__ = ["with_input_noise", "with_label_noise"]

NOISE_SEED = 0  # the noise belongs to the data: it is the same for every seed of a training


def with_label_noise(split: Dataset, rate: float) -> Dataset:
    """The split with some labels replaced by another class, each of the others as likely (symmetric noise).

    Args:
        split: of `Splits`.
        rate: share of the labels that become wrong, in [0, 1].
    """
    labels, feature = np.array(split["label"]), split.features["label"]
    rng = np.random.default_rng(NOISE_SEED)
    wrong = rng.permutation(len(labels))[: round(rate * len(labels))]
    labels[wrong] = (labels[wrong] + rng.integers(1, feature.num_classes, len(wrong))) % feature.num_classes
    return split.remove_columns("label").add_column("label", labels.tolist(), feature=feature)


def with_input_noise(split: Dataset, deviation: float) -> Dataset:
    """The split with Gaussian noise in its images, clipped and rounded to 8 bits; grey images stay grey.

    An image's noise is a function of its pixels. The noisy images, as PNG, lie in the cache of `datasets`.

    Args:
        split: of `Splits`.
        deviation: standard deviation of the noise of a pixel and channel, where white less black is 1.
    """
    return split.map(
        _noisy,
        with_indices=True,
        fn_kwargs={"deviation": deviation, "split": str(split.split)},
        features=split.features,
        desc=f"noise of {deviation:g} in {split.split}",
    )


def _noisy(row: dict, index: int, deviation: float, split: str) -> dict:
    pixels = np.asarray(decode_image(row["image"], "RGB", f"image {index} of split {split}"))
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    rng = np.random.default_rng((NOISE_SEED, zlib.crc32(pixels.tobytes())))
    noisy = (pixels + 255 * deviation * rng.standard_normal(pixels.shape)).round().clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, format="png")
    return {"image": {"bytes": buffer.getvalue(), "path": None}}
