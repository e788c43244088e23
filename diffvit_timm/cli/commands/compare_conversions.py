"""Measure what each conversion of a plain ViT keeps, before any training.

    diffvit compare conversions                                                   # DeiT-Ti on the test images of Pets
    diffvit compare conversions --dataset FOLDER --images 64 --calibration-images 32          # a minute
    diffvit compare conversions --source vit_base_patch16_siglip_224 --no-pretrained          # without weights

The images should be of the kind that the source was trained on. Their labels are not used.
"""

import dataclasses
import time
from typing import Annotated, Any

import tyro

from ...console import log0
from ...conversion.report import ConversionReport, conversion_report
from ...data.config import DatasetConfig
from ...data.loading import image_batches
from ...errors import InputError, require_at_least
from ...layers.adapters import check_layers
from ...models.pretrained import check_model, load_model
from ...options import CheckedOptions
from ...studies.conversions import (
    list_conversions,
    query_gradient_ratio,
    reason_against_contrast,
    reason_against_pairs,
)

GRADIENT_IMAGES = 16

COLUMNS = """
agreement: share of the images with the source's top-1 class; KL: KL(source || converted) of the class probabilities in
nats; output error: relative error of the logits; more parameters: than the source has; gradient: that of the second
queries, relative to that of the first, on 16 images (near 0, the second map hardly learns at first); seconds: time to
convert.
"""


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: DatasetConfig("timm/oxford-iiit-pet")
    )
    source: str = "deit_tiny_patch16_224.fb_in1k"
    """Plain ViT: timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder."""
    pretrained: bool = True
    """Load the pretrained weights; with random ones, the output error shows whether an architecture converts."""
    images: int = 0
    """Number of test images to compare on, drawn at random; 0: all."""
    calibration_images: int = 256
    """Number of training images, without labels, to calibrate on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, images=self.images)
        require_at_least(1, calibration_images=self.calibration_images)


def main(options: Options) -> dict:
    check_model(options.source, options.pretrained, parameter="source", hint="pass `pretrained=False`")
    splits = options.data.load()
    source = _load_source(options)
    calibration = list(image_batches(source, splits.train, options.calibration_images, label="reading images"))
    conversions = list_conversions(source, calibration)
    if reason := reason_against_pairs(source):
        log0(f"no pairs, because {reason}")
    if reason := reason_against_contrast(source):
        log0(f"no contrast, because {reason}")
    count = min(options.images or len(splits.test), len(splits.test))
    log0(
        f"\n{options.source} and its conversions on {count:,} test images, calibrated on "
        f"{sum(map(len, calibration)):,} training images.{COLUMNS}"
    )
    width = max(map(len, conversions))
    log0(f"{'conversion':{width}s}  agreement  KL (nats)  output error  more parameters  gradient  seconds")
    size = sum(p.numel() for p in source.parameters())
    result: dict[str, dict] = {}
    for name, convert in conversions.items():
        start = time.perf_counter()
        model = convert()
        seconds = time.perf_counter() - start
        report = conversion_report(source, model, image_batches(source, splits.test, count))
        more = sum(p.numel() for p in model.parameters()) / size - 1
        gradient = query_gradient_ratio(model, calibration[0][:GRADIENT_IMAGES])
        result[name] = {
            **report.summary(), "more_parameters": more, "gradient_ratio": gradient, "seconds": round(seconds, 2)
        }  # fmt: skip
        shown = "-" if gradient is None else f"{gradient:.2g}"
        log0(f"{name:{width}s}  {_row(report)}  {more:15.2%}  {shown:>8s}  {seconds:7.2f}")
    return result


def _load_source(options: Options) -> Any:
    """Load the plain ViT in evaluation mode, if it can be converted."""
    source = load_model(
        options.source, options.pretrained, parameter="source", hint="pass `pretrained=False`"
    ).eval()  # fmt: skip
    try:
        check_layers(source)
    except ValueError as error:
        raise InputError(f"`source={options.source}`: {error}") from error
    return source


def _row(report: ConversionReport) -> str:
    agreement = "-" if report.agreement is None else f"{report.agreement:.2%}"
    kl = "-" if report.kl is None else f"{report.kl:.4f}"
    return f"{agreement:>9s}  {kl:>9s}  {report.output_error:12.3f}"
