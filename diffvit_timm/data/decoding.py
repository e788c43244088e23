"""Decode one image, upright, opaque and with 8 bits per channel, and encode pixels as one."""

import contextlib
import io
import re
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import InputError

__all__ = ["decode_image", "png_image"]

MAX_ASPECT = 1000  # longest side / shortest side; resizing a longer image to the height of a model fills the memory

# Transposition that turns an image upright, by EXIF orientation.
TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

# Pillow warns of damaged metadata, which we do not use, and of large images below its own limit. Setting the filter
# for each image instead would make Python repeat the warnings of all other packages.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(image: dict | None, mode: str, where: str) -> Image.Image:
    """Decode an image of a split.

    The image is turned upright by its EXIF orientation, if that can be read. Transparent pixels are composed over
    white. Greys of 16 bits are divided by 256, or by 16 if none of them exceeds 4095: these are 12 bits in a 16-bit
    file. Of several frames or pages, the first is decoded.

    Args:
        image: dict with the `bytes` or the `path` of the image, as `datasets` stores an undecoded image.
        mode: PIL's mode of the result, 'L' or 'RGB'.
        where: name of the image in the error, if it is not a file of its own.

    Raises:
        InputError: the image is empty, broken or fully transparent; its pixels have 32 bits, or its colours 12 bits in
            16; one side is more than 1,000 times the other; or it exceeds Pillow's pixel limit.
    """
    if image is None or not (image["bytes"] or image["path"]):
        raise InputError(f"{where} is empty: leave it out")
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as opened:
            _check_aspect_ratio(*opened.size)
            is_deep_colour = any(re.search(r";16[BLN]", str(tile[3])) for tile in opened.tile)  # before the loading
            opened.load()
            if is_deep_colour and not opened.mode.startswith("I"):
                _check_deep_colour(opened)
                _shorten_transparent_colour(opened)
            return _opaque(_eight_bits(_upright(opened))).convert(mode)
    except Exception as error:  # decoders raise anything: struct.error, MemoryError, AssertionError, ...
        name = where if not image["path"] else f"{where} ({image['path']})" if image["bytes"] else image["path"]
        raise InputError(f"{name} does not decode ({_reason(error)}): fix it or leave it out") from error


def png_image(pixels: np.ndarray) -> dict:
    """Encode pixels, (H, W) or (H, W, 3), as a PNG, in the form in which `datasets` stores an undecoded image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return {"bytes": buffer.getvalue(), "path": None}


def _check_aspect_ratio(width: int, height: int) -> None:
    """Refuse extreme aspect ratios."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(
            f"it has {width} x {height} pixels; the longer side may be at most {MAX_ASPECT} times the shorter"
        )


def _check_deep_colour(image: Image.Image) -> None:
    """Refuse colours of 12 bits in a 16-bit file: Pillow divides colours of 16 bits by 256, so they would be black."""
    if 0 < max(high for _, high in image.convert("RGB").getextrema()) < 16:  # type: ignore[misc]
        raise ValueError("its colours use at most 12 of 16 bits: save it with 8 bits per channel")


def _shorten_transparent_colour(image: Image.Image) -> None:
    """Divide the transparent colour of 16 bits by 256, in place, as Pillow divides the colours."""
    if isinstance(colour := image.info.get("transparency"), tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image by its EXIF orientation; broken EXIF data has no orientation.

    PIL's exif_transpose also rewrites the EXIF data, which fails for some files. TIFF files are turned as they load.
    """
    turn = None
    with contextlib.suppress(Exception):
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale greys of 16 bits to 8. PIL's convert would clip them."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and no known range: save it with 8 or 16 bits per channel")
    if not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    grey = (pixels >> (8 if pixels.max() > 4095 else 4)).astype(np.uint8)
    if "transparency" in image.info:
        grey[pixels == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _opaque(image: Image.Image) -> Image.Image:
    """Compose an image over white, if it has transparent pixels."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if not image.getchannel("A").getbbox():
        raise ValueError("it is transparent everywhere")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _reason(error: Exception) -> str:
    """Return the text of a decoder's error in one line."""
    if isinstance(error, UnidentifiedImageError):  # its text has the address of the bytes
        return "no format that Pillow reads"
    if isinstance(error, MemoryError):  # decoders raise it for a damaged header, too
        return "the memory is too small for it, or it is damaged"
    return " ".join(str(error).split()) or type(error).__name__
