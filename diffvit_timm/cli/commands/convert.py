"""Convert a pretrained transformer of timm into a differential one, and report what the conversion kept.

    diffvit convert deit_tiny_patch16_224.fb_in1k OUT                      # from the weights only
    diffvit convert deit_tiny_patch16_224.fb_in1k OUT --images FOLDER      # calibrated, with a report on other images
    diffvit convert deit_tiny_patch16_224.fb_in1k OUT --attn diff_v2       # version 2, exact

After import diffvit_timm, timm.create_model('local-dir:OUT', pretrained=True) loads the folder. To fine-tune it:
diffvit train --config pets --model OUT --dataset FOLDER (with --reset-head if your classes are others).
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ...console import log0
from ...conversion.distillation import distill_layers
from ...conversion.report import conversion_report
from ...conversion.weights import READS_IMAGES, resolve_method
from ...data.loading import image_batches
from ...errors import InputError, require_at_least, require_device
from ...files import fill_folder
from ...models.from_vit import from_vit
from ...models.pretrained import check_convertible, load_model, save_pretrained
from ...options import CheckedOptions, named
from ...output import claim_new_folder


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """timm model name with its pretrained tag, hf-hub:NAME, a folder of weights, or a run folder."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder to write, new or empty."""
    attn: Literal["diff", "diff_v2"] = "diff"
    """Version of differential attention."""
    method: Literal["auto", "svd", "slice", "pairs", "calibrated", "mirror", "contrast"] = "auto"
    """auto: mirror for diff_v2; for diff, calibrated with images and svd without; slice, pairs: for comparison."""
    images: str | None = None
    """Images to calibrate and report on: a folder, or a dataset on the Hub (its train split)."""
    dataset_config: str | None = None
    """Dataset configuration, as named on its Hub page or in its README.md; needed if there are several."""
    image_column: str = "auto"
    """Column of the images; auto: the only image column."""
    calibration_images: int = 256
    """Number of images to calibrate on, drawn at random."""
    report_images: int = 256
    """Number of other images to report on."""
    distill: int = 0
    """Passes over the calibration images to fit each layer to its plain original; 0: none."""
    lambda_init: float | None = None
    """Initial lambda; default: 0.05 for diff, 0.5 for mirror, 0.04 for contrast."""
    branch_dims: tuple[int, int] | None = None
    """Query and key widths of A1 and A2 in a head, for diff; default: three quarters and one quarter."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, mps, ..."""
    seed: int = 0
    """Seed for drawing images."""
    json: bool = False
    """Print the report as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, calibration_images=self.calibration_images, report_images=self.report_images)
        require_at_least(0, distill=self.distill, seed=self.seed)
        if self.distill and self.images is None:
            raise InputError(f"`distill={self.distill}` needs images to learn on: pass `images`")

    @property
    def calibrates(self) -> bool:
        """Whether the conversion itself looks at images."""
        is_default = self.method == "auto" and self.attn == "diff"
        return self.images is not None and (is_default or self.method in READS_IMAGES)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the differential layers that were given."""
        given = {"lambda_init": self.lambda_init, "branch_dims": self.branch_dims}
        return {name: value for name, value in given.items() if value is not None}


def main(options: Options) -> None:
    with claim_new_folder(options.out, "out") as folder:
        _convert_into(folder, options)


def _convert_into(folder: Path, options: Options) -> None:
    try:
        method = resolve_method(options.method, options.attn, options.calibrates)
    except ValueError as error:
        raise InputError(f"`method={options.method}` does not go with `attn={options.attn}`: {error}") from error
    check_convertible(options.source, "source", method)
    require_device(options.device)
    calibration, report_on = _draw_images(options)
    plain = load_model(options.source, parameter="source").eval().to(options.device)
    model = _convert(plain, method, calibration, options)
    report = conversion_report(plain, model, image_batches(plain, report_on)) if report_on is not None else None
    with fill_folder(folder, "the model", "convert again") as temporary:
        save_pretrained(model.cpu(), temporary, plain.pretrained_cfg.get("label_names"))
    _print_result(folder, method, report, options)


def _draw_images(options: Options) -> tuple[Any, Any]:
    """Return the images to calibrate on and those to report on, None where there are none."""
    if options.images is None:
        return None, None
    from ...data.datasets import load_images  # not above: without images, datasets is not needed

    used = options.calibration_images if options.calibrates or options.distill else 0
    pool = load_images(options.images, options.image_column, dataset_config=options.dataset_config)
    pool = pool.shuffle(seed=options.seed)
    if len(pool) <= used:
        raise InputError(
            f"`images={options.images}` has {len(pool)} images, so `calibration_images={used}` leaves none to report "
            "on: lower it"
        )
    report_on = pool.select(range(used, min(len(pool), used + options.report_images)))
    return pool.take(used) if used else None, report_on


def _convert(plain: Any, method: str, calibration: Any, options: Options) -> Any:
    """Convert the network, and distil its layers if asked."""
    batches: Any = None if calibration is None else image_batches(plain, calibration, label="reading images")
    if options.distill:
        batches = list(batches)  # they are read once per pass
    try:
        model = from_vit(plain, method, batches if options.calibrates else None, attn=options.attn, **options.settings)
    except ValueError as error:
        given = "".join(f" with {named(name, value)}" for name, value in options.settings.items())
        raise InputError(f"`source={options.source}`{given}: {error}") from error
    if options.distill:
        log0(f"layer-wise distillation: {options.distill} passes over {len(calibration)} images")
        distill_layers(plain, model, batches, options.distill)
    return model


def _print_result(folder: Path, method: str, report: Any, options: Options) -> None:
    log0(
        f"{method}: written to {folder}, for timm.create_model('local-dir:{folder}', pretrained=True) after "
        "import diffvit_timm"
    )
    if options.json:
        result = {"source": options.source, "out": str(folder), "attn": options.attn, "method": method}
        print(json.dumps({**result, "report": report.to_dict() if report else None}))
    elif report:
        print(report)
