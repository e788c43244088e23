"""Damaged image files of every format that Pillow writes, from a seed: each must decode or be one InputError."""

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from diffvit_timm.data.decoding import decode_image
from diffvit_timm.errors import InputError

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16")
EXTERNAL = {"EPS", "WMF", "PDF", "PALM"}  # Pillow reads them with another program, or not at all
SLOW = {"AVIF": ("L", "RGBA"), "ICNS": ("RGBA",)}  # modes of formats that take long to write and store few modes
FILES = 500  # damaged images per trial
EXTREMES = (
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x01",
    b"\x00\x00\x10\x00",
)


def sample_files() -> dict[str, bytes]:
    """Return a small picture in every format and mode, by name; those that can have EXIF data also with it."""
    Image.init()
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (20, 24, 4), dtype=np.uint8), "RGBA")
    pictures = {mode: colour.convert(mode) for mode in MODES if mode != "I;16"}
    pictures["I;16"] = Image.fromarray(rng.integers(0, 65536, (20, 24), dtype=np.uint16))
    exif = Image.Exif()
    exif[274], exif[270], exif[282] = 6, "a description", 72.0  # orientation, description, resolution
    files = {}
    for kind in sorted(Image.SAVE.keys() - EXTERNAL):
        for mode in SLOW.get(kind, MODES):
            for name, options in (("", {}), (" with EXIF", {"exif": exif.tobytes()})):
                if (data := _saved(pictures[mode], kind, options)) and data not in files.values():
                    files[f"{kind} {mode}{name}"] = data
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"TIFF {compression}"] = _saved(pictures["RGB"], "TIFF", {"compression": compression})
    return files


def _saved(picture: Image.Image, kind: str, options: dict) -> bytes:
    """Return the picture as a file of this kind; empty if the kind cannot store the mode."""
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=kind, **options)
    except (OSError, ValueError, KeyError, DeprecationWarning):  # Pillow 12 warns where 13 refuses
        return b""
    return buffer.getvalue()


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a damaged copy of a file."""
    damaged = bytearray(data)
    start = int(rng.integers(len(data) if rng.random() < 0.5 else min(64, len(data))))  # often in the header
    length = int(rng.integers(1, 33))
    kind = rng.integers(7)
    if kind == 0:
        del damaged[start:]
    elif kind == 1:
        del damaged[start : start + length]
    elif kind == 2:
        damaged[start:start] = rng.bytes(length)
    elif kind == 3:
        damaged[start : start + length] = bytes(len(damaged[start : start + length]))
    elif kind == 4:
        damaged[start : start + 4] = EXTREMES[rng.integers(len(EXTREMES))]
    else:
        for _ in range(int(rng.integers(1, 6))):
            place = start if rng.random() < 0.5 else int(rng.integers(len(damaged)))
            damaged[place] = int(rng.integers(256))
    return bytes(damaged)


def mutated_files(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of damaged files, of all formats in turn."""
    samples = list(sample_files().items())
    for number in range(count):
        name, data = samples[number % len(samples)]
        yield f"{name}, number {number}", mutate(data, np.random.default_rng((seed, number)))


def try_mutations(count: int, seed: int = 0) -> tuple[Counter, list[str]]:
    """Decode damaged files in both modes.

    Returns:
        The numbers of files that "decoded" or were "refused", and a line about each other exception or bad message.
    """
    outcomes: Counter = Counter()
    escaped = []
    for number, (name, data) in enumerate(mutated_files(count, seed)):
        mode = ("RGB", "L")[number % 2]
        try:
            image = decode_image({"bytes": data, "path": None}, mode, "image 7")
            image.tobytes()
            outcomes["decoded"] += 1
            if image.mode != mode:
                escaped.append(f"{name}: {image.mode}")
        except InputError as error:
            outcomes["refused"] += 1
            if "\n" in str(error) or not str(error).startswith("image 7 "):
                escaped.append(f"{name}: {error}")
        except Exception as error:
            escaped.append(f"{name}: {error!r}")
    return outcomes, escaped


def damaged_images(count: int, rng: random.Random) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield trials of FILES damaged images each, for tests/campaign.py."""
    for seed in rng.sample(range(10**6), count):

        def trial(seed=seed) -> None:
            _, escaped = try_mutations(FILES, seed)
            assert not escaped, escaped

        yield f"{FILES} damaged images of seed {seed}", trial
