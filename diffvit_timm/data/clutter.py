"""Digits among distractors: each digit lies on a field of pieces of other digits, which a network has to ignore.

The task is cluttered translated MNIST, of `Mnih et al. 2014` - https://arxiv.org/abs/1406.6247
"""

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np
from datasets import Image as ImageFeature

from ..errors import InputError
from .decoding import png_image
from .fingerprint import fingerprint
from .images import decode_all
from .splits import Splits

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["clutter_splits"]


def clutter_splits(digits: Splits, side: int = 40, pieces: int = 8, piece_side: int = 8, seed: int = 0) -> Splits:
    """Put every digit at a random place of a black field, among pieces of other digits of the same split.

    A piece is a square cut out of another digit around a random pixel of its ink. Where digit and pieces overlap, the
    brighter pixel is kept. The draws depend only on the seed, the split and the index of the image. The images are
    stored as PNG in the cache of `datasets`.

    Args:
        digits: splits of grey images of one size, bright on black, such as MNIST.
        side: height and width of the field in pixels.
        pieces: number of pieces.
        piece_side: height and width of a piece in pixels.
        seed: seed of the places and pieces.

    Returns:
        The splits, with the further column 'mask', whose pixels are above 0 where the ink of the digit is.

    Raises:
        InputError: digits of several sizes, digits or pieces that are larger than the field, or a negative number.
    """
    if pieces < 0:
        raise InputError(f"`pieces={pieces}` must not be negative")
    if not 1 <= piece_side <= side:
        raise InputError(f"`piece_side={piece_side}` must be between 1 and `side={side}`")
    settings = dict(side=side, pieces=pieces, piece_side=piece_side)
    train, val, test = (
        _clutter(getattr(digits, role), **settings, seed=(seed, number))
        for number, role in enumerate(("train", "val", "test"))
    )
    return Splits(train, val, test, digits.class_names)


def _clutter(split: "Dataset", seed: tuple[int, int], **settings: int) -> "Dataset":
    @functools.cache
    def digits() -> np.ndarray:
        return _decoded(split, settings["side"])

    def clutter(row: dict, index: int) -> dict:
        return _clutter_digit(digits(), index, np.random.default_rng((*seed, index)), **settings)

    features = split.features.copy()
    features["image"] = features["mask"] = ImageFeature(decode=False)
    # With a fingerprint of its own, the digits are decoded only if the result is not in the cache yet.
    content = repr((fingerprint(split), seed, sorted(settings.items())))
    return split.map(
        clutter,
        with_indices=True,
        features=features,
        new_fingerprint="clutter" + hashlib.sha256(content.encode()).hexdigest()[:16],
        desc=f"cluttering {split.split}",
    )


def _decoded(split: "Dataset", side: int) -> np.ndarray:
    """Decode all digits, (n, h, w), uint8."""
    decoded = decode_all(split, in_chans=1)  # (n, 1, h, w)
    if decoded is None:
        raise InputError("`dataset` has images of several sizes: clutter needs digits of one size")
    height, width = decoded.shape[-2:]
    if max(height, width) > side:
        raise InputError(
            f"`dataset` has images of {height} x {width} pixels, which do not fit on the field: take images of at most "
            f"{side} x {side} pixels, or raise `side={side}`"
        )
    return decoded[:, 0].numpy()


def _clutter_digit(
    digits: np.ndarray, index: int, rng: np.random.Generator, side: int, pieces: int, piece_side: int
) -> dict:
    """Return the image of one digit among pieces of the others, and its mask; arguments as in `clutter_splits`."""
    ink = np.zeros((side, side), np.uint8)
    _paste(ink, digits[index], rng)
    field = ink.copy()
    for _ in range(pieces):
        other = digits[(index + 1 + rng.integers(max(1, len(digits) - 1))) % len(digits)]
        _paste(field, _cut_piece(other, piece_side, rng), rng)
    return {"image": png_image(field), "mask": png_image(ink > 0)}


def _paste(field: np.ndarray, piece: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a piece, (h, w), at a random place of the field, (side, side), where it is the brighter of both."""
    height, width = piece.shape
    top, left = (rng.integers(length - own + 1) for length, own in zip(field.shape, piece.shape, strict=True))
    part = field[top : top + height, left : left + width]
    np.maximum(part, piece, out=part)


def _cut_piece(digit: np.ndarray, piece_side: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a square around a random pixel of ink. It is smaller at the edge of the digit, and empty without ink."""
    ink = np.flatnonzero(digit)
    if not len(ink):
        return digit[:0]
    row, column = divmod(int(ink[rng.integers(len(ink))]), digit.shape[1])
    top, left = row - piece_side // 2, column - piece_side // 2
    return digit[max(0, top) : top + piece_side, max(0, left) : left + piece_side]
