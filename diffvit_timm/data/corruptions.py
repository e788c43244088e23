"""Common corruptions of images, at severities from 1 to 5: the same image is always corrupted in the same way.

Paper: `Hendrycks and Dietterich 2019` - https://arxiv.org/abs/1903.12261

The transforms are those of albumentations. Their parameters are those of the authors' datasets: of CIFAR-10-C (32
pixels) for images of up to 64 pixels, and of ImageNet-C (224 pixels) for larger ones. Lengths are in pixels, and do not
grow with the image. Accuracies are not comparable with published ones on these datasets, because some transforms
differ: the shot noise is drawn in linear light, the impulse noise strikes all channels of a pixel, the motion is a
straight line of uniform weight, and the fog is a cloud of discs.
"""

import functools
import zlib
from typing import Any, NamedTuple

import numpy as np

from .augment import SeededCompose, refuse_albumentationsx
from .images import SMALL

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt"]

SEVERITIES = (1, 2, 3, 4, 5)


class Corruption(NamedTuple):
    """The parameter of a corruption at each severity.

    Attributes:
        parameter: what the numbers mean.
        large: parameter at the severities 1 to 5, for images with a side of more than SMALL pixels.
        small: the same for smaller images.
    """

    parameter: str
    large: tuple
    small: tuple


CORRUPTIONS = {
    "gaussian_noise": Corruption(
        "standard deviation, for pixels in [0, 1]", (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)
    ),
    "shot_noise": Corruption("photons of a white pixel", (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(
        "share of the pixels that become black or white", (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)
    ),
    # A disc needs a radius of 1 pixel; CIFAR-10-C begins with smaller ones.
    "defocus_blur": Corruption(
        "radius of the disc, and deviation of the blur of its edge, in pixels",
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((1, 0.1), (1, 0.4), (1, 0.6), (1, 1.0), (2, 0.1)),
    ),
    # A line of 2 s + 1 pixels is as wide as half a Gaussian of deviation s, along which the paper moves.
    "motion_blur": Corruption("length of the line in pixels", (7, 11, 17, 25, 31), (3, 3, 5, 5, 7)),
    "zoom_blur": Corruption(
        "largest zoom, and step of the zooms that are averaged",
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "fog": Corruption("opacity of a disc", (0.02, 0.03, 0.05, 0.07, 0.1), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "brightness": Corruption("added to pixels in [0, 1]", (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(
        "factor on the difference from the mean grey", (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)
    ),
    "jpeg_compression": Corruption("quality", (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
    # CIFAR-10-C has 0.95 to 0.65; 0.95 moves more pixels than 0.9.
    "pixelate": Corruption(
        "side of the smaller image, relative", (0.6, 0.5, 0.4, 0.3, 0.25), (0.9, 0.85, 0.75, 0.65, 0.5)
    ),
}


def corrupt(pixels: np.ndarray, corruption: str, severity: int) -> np.ndarray:
    """Corrupt an image. The random draws depend only on its pixels, the corruption and the severity.

    Args:
        pixels: image, (H, W, 1) or (H, W, 3), uint8. A grey image is corrupted as the colour image of the same greys.
        corruption: key of CORRUPTIONS.
        severity: one of SEVERITIES.

    Returns:
        The corrupted image, in the shape of `pixels`, uint8.

    Raises:
        InputError: AlbumentationsX is installed instead of albumentations.
    """
    seed = zlib.crc32(pixels.tobytes() + f"{corruption} {severity}".encode())
    colour = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels  # the fog reads colour images only
    pipeline = _pipeline(corruption, severity, max(pixels.shape[:2]) <= SMALL)
    return pipeline(colour, seed)[..., : pixels.shape[2]]


@functools.cache
def _pipeline(corruption: str, severity: int, is_small: bool) -> SeededCompose:
    refuse_albumentationsx()
    import albumentations as A  # not above: it is slow to import

    row = CORRUPTIONS[corruption]
    return SeededCompose(A.Compose([_transform(corruption, (row.small if is_small else row.large)[severity - 1])]))


def _transform(corruption: str, value: Any) -> Any:
    """Return the transform of albumentations. Each of its ranges is a single value."""
    import albumentations as A
    import cv2

    one, no = (1.0, 1.0), (0.0, 0.0)
    match corruption:
        case "gaussian_noise":
            return A.GaussNoise(std_range=(value, value), p=1)
        case "shot_noise":
            return A.ShotNoise(scale_range=(1 / value, 1 / value), p=1)
        case "impulse_noise":
            return A.SaltAndPepper(amount=(value, value), salt_vs_pepper=(0.5, 0.5), p=1)
        case "defocus_blur":
            radius, deviation = value
            return A.Defocus(radius=(radius, radius), alias_blur=(deviation, deviation), p=1)
        case "motion_blur":  # in a random direction
            return A.MotionBlur(blur_limit=(value, value), allow_shifted=False, direction_range=no, p=1)
        case "zoom_blur":
            largest, step = value
            return A.ZoomBlur(max_factor=(largest, largest), step_factor=(step, step), p=1)
        case "fog":
            return A.RandomFog(fog_coef_range=one, alpha_coef=value, p=1)
        case "brightness":
            return A.RandomBrightnessContrast(brightness_limit=(value, value), contrast_limit=no, p=1)
        case "contrast":  # RandomBrightnessContrast would not keep the mean
            return A.ColorJitter(brightness=one, contrast=(value, value), saturation=one, hue=no, p=1)
        case "jpeg_compression":
            return A.ImageCompression(quality_range=(value, value), p=1)
        case "pixelate":  # the exact variant, because the other one shifts the image
            methods = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_NEAREST_EXACT}
            return A.Downscale(scale_range=(value, value), interpolation_pair=methods, p=1)
    raise KeyError(corruption)
