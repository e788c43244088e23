"""Make a small dataset of handwritten digits on photographs, with a mask and the list of digits of each image.

    python recipes/digit_masks.py --output digits-on-pets
    python recipes/digit_masks.py --digits FOLDER --photographs FOLDER --output digits-on-pets --train 200 --test 100
    diffvit train --dataset digits-on-pets --model diffvit_tiny_patch16.deit_in1k
    diffvit segment vit_tiny_patch16_224.augreg_in21k_ft_in1k --dataset digits-on-pets --augment crop

The masks are exact: the ink of a digit d has the class d, and everything else is background. The table metadata.csv
beside the images says which digits are on each of them, for a classifier with several labels per image. Digits and
photographs of the test images are those of the test splits.
"""

import dataclasses
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from diffvit_timm.data.config import DatasetConfig
from diffvit_timm.data.decoding import decode_image
from diffvit_timm.files import csv_file
from diffvit_timm.output import claim_new_folder

INK = 96  # grey value from which a pixel of a digit is ink


@dataclasses.dataclass(frozen=True)
class Options:
    output: str
    """New folder."""
    digits: str = "mnist"
    """Dataset of grey digits, bright on black."""
    photographs: str = "pets"
    """Dataset of photographs."""
    train: int = 600
    """Number of training images."""
    test: int = 300
    """Number of test images."""
    size: int = 224
    """Height and width of the images in pixels."""
    per_image: int = 3
    """Digits per image."""


def main(options: Options) -> None:
    digits, photographs = DatasetConfig(options.digits).load(), DatasetConfig(options.photographs).load()
    names = [f"digit {name}" for name in digits.class_names]
    with claim_new_folder(options.output) as folder:
        for number, (split, count) in enumerate((("train", options.train), ("test", options.test))):
            for kind in ("images", "masks"):
                (folder / split / kind).mkdir(parents=True)
            rng = np.random.default_rng((0, number))
            with csv_file(folder / split / "images" / "metadata.csv", ["file_name", *names]) as write_row:
                for i in range(count):
                    image, mask = make_image(getattr(digits, split), getattr(photographs, split), options, rng)
                    Image.fromarray(image).save(folder / split / "images" / f"{i:04d}.jpg", quality=92)
                    Image.fromarray(mask).save(folder / split / "masks" / f"{i:04d}.png")
                    shown = {name: digit in mask for digit, name in enumerate(names, start=1)}
                    write_row({"file_name": f"{i:04d}.jpg", **shown})
        lines = "\n".join(["background", *names, ""])
        Path(folder, "classes.txt").write_text(lines, encoding="utf-8")
    print(f"{folder}: {options.train} training and {options.test} test images")


def make_image(digits, photographs, options: Options, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put digits of random sizes and colours on a random photograph; returns the image and its mask, uint8."""
    size = options.size
    photograph = decode_image(photographs[int(rng.integers(len(photographs)))]["image"], "RGB", "a photograph")
    image = np.array(photograph.resize((size, size), Image.Resampling.BICUBIC))
    mask = np.zeros((size, size), np.uint8)
    for _ in range(options.per_image):
        row = digits[int(rng.integers(len(digits)))]
        side = int(rng.integers(size // 4, size // 2))
        digit = decode_image(row["image"], "L", "a digit").resize((side, side), Image.Resampling.BICUBIC)
        ink = np.asarray(digit) >= INK
        y, x = rng.integers(0, size - side, size=2)
        image[y : y + side, x : x + side][ink] = rng.integers(0, 256, size=3)
        mask[y : y + side, x : x + side][ink] = row["label"] + 1
    return image, mask


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
