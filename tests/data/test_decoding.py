"""Every image decodes upright, opaque and in its own brightness, or is one line that names it."""

import importlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from mutations import try_mutations
from PIL import Image, PngImagePlugin

from diffvit_timm.data import decoding
from diffvit_timm.data.decoding import decode_image
from diffvit_timm.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as decoding.py does; pytest resets its filter

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


def stored(picture, fmt="png", **options):
    """Return a picture, or an array of pixels, as the bytes of a file."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, format=fmt, **options)
    return buffer.getvalue()


def decoded(data, mode="RGB"):
    """Return the pixels, (H, W, 3) or (H, W)."""
    return np.asarray(decode_image({"bytes": data, "path": None}, mode, "image 7 of split train"))


def colour_of(data, mode="RGB"):
    """Return the one colour of an image."""
    pixels = decoded(data, mode)
    colours = np.unique(pixels.reshape(-1, *pixels.shape[2:]), axis=0)
    assert len(colours) == 1
    return colours[0].tolist()


def refusal(data, mode="RGB"):
    with pytest.raises(InputError) as caught:
        decoded(data, mode)
    start, end = "image 7 of split train does not decode (", "): fix it or leave it out"
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)
    return str(caught.value).removeprefix(start).removesuffix(end)


def deep_png(colours, transparent=None):
    """Return a PNG of colours with 16 bits, (H, W, 3), which Pillow reads but does not write."""
    height, width, _ = colours.shape

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    if transparent:
        chunks += chunk(b"tRNS", struct.pack(">HHH", *transparent))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif_of(*entries):
    """Return EXIF data of entries (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHI4s", tag, kind, count, value) for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


def orientation(value):
    return (274, 3, 1, struct.pack("<H", value))


@pytest.mark.parametrize(
    ("mode", "fmt", "colour", "expected"),
    [
        ("L", "png", 90, (90, 90, 90)),
        ("1", "png", 1, (255, 255, 255)),
        ("RGBA", "png", (200, 30, 60, 255), (200, 30, 60)),
        ("LA", "png", (90, 255), (90, 90, 90)),
        ("CMYK", "jpeg", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", "tiff", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", "jpeg", (76, 85, 255), (254, 0, 0)),
    ],
)
def test_images_of_every_mode_decode_to_their_colours(mode, fmt, colour, expected):
    data = stored(Image.new(mode, (20, 20), colour), fmt)
    np.testing.assert_allclose(colour_of(data), expected, atol=8)
    luminance = np.dot(expected, (0.299, 0.587, 0.114))  # ITU-R 601
    np.testing.assert_allclose(colour_of(data, "L"), luminance, atol=8)


def test_palette_images_decode_to_the_colours_of_their_palette():
    palette = Image.new("RGB", (20, 20), (200, 30, 60)).quantize(4)
    assert palette.mode == "P"
    np.testing.assert_allclose(colour_of(stored(palette)), (200, 30, 60), atol=4)


@pytest.mark.parametrize("fmt", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("value", range(1, 9))
def test_the_eight_exif_orientations_turn_an_image_upright(value, fmt):
    turns = [lambda p: p, np.fliplr, lambda p: np.rot90(p, 2), np.flipud, lambda p: p.swapaxes(0, 1),
             lambda p: np.rot90(p, -1), lambda p: np.rot90(p, 2).swapaxes(0, 1), np.rot90]  # fmt: skip
    exif = Image.Exif()
    exif[274] = value
    quarters = np.kron([[0, 100], [200, 255]], np.ones((8, 16))).astype(np.uint8)
    pixels = decoded(stored(quarters, fmt, exif=exif), "L").astype(int)
    assert np.abs(pixels - turns[value - 1](quarters)).max() < 8


def test_an_image_whose_exif_data_pillow_cannot_rewrite_is_turned_upright():
    exif = exif_of((256, 2, 4, b"abc\0"), orientation(6))  # a width that is a text
    with pytest.raises(struct.error):
        Image.Exif.tobytes(Image.open(io.BytesIO(stored(NOISE, "jpeg", exif=exif))).getexif())
    plain = decoded(stored(NOISE, "jpeg"))
    np.testing.assert_array_equal(decoded(stored(NOISE, "jpeg", exif=exif)), np.rot90(plain, -1))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0II*\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", exif_of(orientation(6))[:-10], exif_of(orientation(9))],
    ids=["cut", "beyond", "short", "unknown"],
)
def test_broken_exif_data_has_no_orientation(exif):
    np.testing.assert_array_equal(decoded(stored(NOISE, "jpeg", exif=exif)), decoded(stored(NOISE, "jpeg")))


@pytest.mark.parametrize(
    ("picture", "options", "expected"),
    [
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), {}, 204),
        (Image.new("LA", (4, 4), (0, 51)), {}, 204),
        (Image.new("LA", (4, 4), (100, 255)), {}, 100),
        (Image.new("P", (4, 4), 1), {"transparency": bytes([255, 51])}, 204),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_transparent_pixels_are_composed_over_white(picture, options, expected, mode):
    if picture.mode == "P":
        picture.putpalette([9, 9, 9, 0, 0, 0])
    assert colour_of(stored(picture, **options), mode) == ([expected] * 3 if mode == "RGB" else expected)


@pytest.mark.parametrize(
    ("kind", "fmt"), [*((kind, "png") for kind in ("1", "P", "L", "RGB", "I;16")), ("P", "gif"), ("L", "gif")]
)
def test_the_transparent_colour_of_an_image_becomes_white(kind, fmt):
    pixels, transparent = np.array([[0, 255], [255, 0]] if kind == "1" else [[0, 40], [40, 0]], np.uint8), 0
    picture = Image.fromarray(pixels)
    if kind == "I;16":
        picture = Image.fromarray(pixels.astype(np.uint16) * 256)
    elif kind == "P":
        picture.putpalette([value for index in range(256) for value in [index] * 3])
    elif kind in ("1", "RGB"):
        picture, transparent = picture.convert(kind), transparent if kind == "1" else (0, 0, 0)
    shown = 255 if kind == "1" else 40
    expected = [[255, shown], [shown, 255]]
    assert decoded(stored(picture, fmt, transparency=transparent), "L").tolist() == expected


def test_an_image_that_is_transparent_everywhere_is_refused():
    for mode in ("RGBA", "LA"):
        assert refusal(stored(Image.new(mode, (4, 4), 0))) == "it is transparent everywhere"


@pytest.mark.parametrize("fmt", ["png", "tiff"])
@pytest.mark.parametrize(("highest", "divisor"), [(65535, 256), (4096, 256), (4095, 16), (1023, 16), (0, 16)])
def test_greys_of_16_bits_keep_their_contrast_and_those_below_4096_are_12_bits(fmt, highest, divisor):
    ramp = np.linspace(0, highest, 400).reshape(20, 20).astype(np.uint16)
    for mode in ("L", "RGB"):
        pixels = decoded(stored(ramp, fmt), mode)
        np.testing.assert_array_equal(pixels if mode == "L" else pixels[..., 1], ramp // divisor)


def test_colours_of_16_bits_are_divided_by_256_and_those_of_12_bits_are_refused():
    ramp = np.linspace(0, 65535, 1200).reshape(20, 20, 3).astype(np.uint16)
    np.testing.assert_array_equal(decoded(deep_png(ramp)), ramp // 256)
    reason = "its colours use at most 12 of 16 bits: save it with 8 bits per channel"
    assert refusal(deep_png(ramp // 16)) == reason
    assert colour_of(deep_png(ramp * 0)) == [0, 0, 0]
    assert decoded(deep_png(ramp, transparent=ramp[0, 0].tolist()))[0, :2].tolist() == [[255] * 3, [0, 0, 1]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused_because_their_range_is_unknown(kind):
    reason = "its pixels have 32 bits, and no known range: save it with 8 or 16 bits per channel"
    assert refusal(stored(np.eye(20, dtype=kind), "tiff")) == reason


@pytest.mark.parametrize("fmt", ["gif", "png", "tiff", "webp"])
def test_the_first_frame_of_several_is_decoded(fmt):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 30, 60), (0, 255, 0))]
    data = stored(frames[0], fmt, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_allclose(decoded(data).mean((0, 1)), (200, 30, 60), atol=6)


def test_images_of_too_many_pixels_or_none_and_extreme_aspect_ratios_are_refused_before_they_are_decoded():
    assert refusal(b"P5 16384 16384 255\n").startswith("Image size (268435456 pixels) exceeds limit of ")
    for empty in (b"P5 0 9 255\n", stored(NOISE, "bmp").replace(struct.pack("<II", 30, 20), struct.pack("<II", 0, 20))):
        assert refusal(empty) == "no format that Pillow reads"
    reason = "it has 1 x 1001 pixels; the longer side may be at most 1000 times the shorter"
    assert refusal(stored(Image.new("L", (1, 1001)))) == reason
    assert decoded(stored(Image.new("L", (1, 1000)))).shape == (1000, 1, 3)


def test_a_bomb_in_the_metadata_is_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    assert (
        refusal(stored(Image.new("RGB", (20, 20)), pnginfo=info))
        == "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "the memory is too small for it, or it is damaged"),
        (struct.error("a\nb"), "a b"),
        (RecursionError("deep"), "deep"),
    ],
)
def test_every_exception_of_a_decoder_is_one_line(error, reason, monkeypatch):
    def fail(self):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    assert refusal(stored(NOISE)) == reason


def test_an_image_that_is_missing_or_of_no_known_format_is_named(tmp_path):
    assert refusal(b"no image") == "no format that Pillow reads"
    for empty in (None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}):
        with pytest.raises(InputError, match=r"^image 7 is empty: leave it out$"):
            decode_image(empty, "RGB", "image 7")
    missing = tmp_path / "missing.png"
    with pytest.raises(InputError, match=rf"^{missing} does not decode \(\[Errno 2\] No such file"):
        decode_image({"bytes": None, "path": str(missing)}, "RGB", "image 7")
    with pytest.raises(InputError, match=r"^image 7 \(cat.png\) does not decode "):  # the path within an archive
        decode_image({"bytes": b"no image", "path": "cat.png"}, "RGB", "image 7")


def test_pillow_does_not_warn_of_an_image_that_decodes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow refuses twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(decoding)
        assert decoding.decode_image({"bytes": stored(NOISE), "path": None}, "L", "image 7").size == (30, 20)


def test_damaged_files_of_every_format_decode_or_are_refused():
    outcomes, escaped = try_mutations(2000)
    assert not escaped
    assert outcomes.total() == 2000
    assert min(outcomes.values()) > 500
