"""Random folders of images whose names try to mislead, for tests/campaign.py."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from diffvit_timm.data.folders import load_image_folder

SPLITS = {"train": ("train", "Train", "TRAINING"), "validation": ("val", "Valid", "dev"), "test": ("test", "Testing")}
WORDS = (
    "train", "test", "val", "evaluation", "bullet_train", "test_tube", "dev", "a[1]", "b*", "c?", "{d}", "ü ñ", "猫",
    "cat", "dog", "train-01", "x.png", "$5", "data",
)  # fmt: skip
SUFFIXES = (".png", ".jpg", ".JPG", ".webp", ".bmp", ".tif", ".gif", ".avif", ".ppm")
OTHER_FILES = (".DS_Store", "Thumbs.db", "notes.txt", "labels.csv", "__MACOSX/train.png", ".hidden/test.png")


def layouts(root: Path, count: int, rng: random.Random) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield trials that write a folder and require that each image is in its split and class."""
    for number in range(count):
        seed = rng.random()

        def trial(folder=root / str(number), seed=seed) -> None:
            expected = _write(folder, random.Random(seed))
            loaded = load_image_folder(folder)
            assert loaded is not None
            found = {
                split: {
                    (Path(row["image"]["path"]), data.features["label"].names[row["label"]])
                    for row in data.cast_column("image", type(data.features["image"])(decode=False))
                }
                for split, data in loaded.items()
            }
            assert found == expected

        yield f"layout of seed {seed}", trial


def _write(folder: Path, rng: random.Random) -> dict[str, set[tuple[Path, str]]]:
    """Write a folder of images with random names; returns (path, class) of the images of each split."""
    classes = rng.sample(WORDS, rng.randint(2, 5))
    roots = {"train": folder}
    if rng.random() < 0.7:
        roots = {split: folder / rng.choice(names) for split, names in SPLITS.items() if rng.random() < 0.8}
        roots.setdefault("train", folder / "train")
    expected: dict[str, set[tuple[Path, str]]] = {split: set() for split in roots}
    for split, root in roots.items():
        for name in classes:
            for index in range(rng.randint(1, 4)):
                below = Path(*rng.choices(WORDS, k=rng.randint(0, 2)))
                path = root / name / below / f"{rng.choice(WORDS)}-{index}{rng.choice(SUFFIXES)}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(path)
                expected[split].add((path, name))
    for other in rng.sample(OTHER_FILES, 3):
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(b"")
    return expected
