"""What each way of making a Diff-ViT from a plain ViT keeps, before any training, on a dataset's test images.

    python recipes/compare_conversions.py --dataset timm/oxford-iiit-pet
    python recipes/compare_conversions.py --dataset FOLDER --images 64 --calibration-images 32          # a minute
    python recipes/compare_conversions.py --dataset FOLDER --images 8 --calibration-images 16 \\
        --source vit_base_patch16_siglip_224 --no-pretrained                    # an architecture, without its weights

The images only have to be of the kind that the source knows. Results: recipes/README.md.
"""

import dataclasses
import time
from typing import Any

import timm
from torch import Tensor

from diffvit_timm import conversion_report, distill_layers, from_vit
from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0
from diffvit_timm.conversion.sources import check_source
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.loading import image_batches
from diffvit_timm.errors import InputError, require_at_least
from diffvit_timm.models.pretrained import check_model, load_model


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    dataset: str = "timm/oxford-iiit-pet"
    """Name on the Hub, or a folder: parquet files, or one folder of images a class."""
    label_column: str = "label"
    """Column of the class labels, by which the splits are made."""
    source: str = "deit_tiny_patch16_224.fb_in1k"
    """timm name of the plain ViT."""
    pretrained: bool = True
    """--no-pretrained: random weights; the output error then says whether an architecture converts."""
    images: int = 0
    """Images of the test split, drawn at random; 0: all."""
    calibration_images: int = 256
    """Images of the train split, unlabelled, for what reads any."""


def _distilled(source: Any, images: list[Tensor]) -> Any:
    model: Any = from_vit(source, images=images)
    distill_layers(source, model, images)
    return model


def _stock(config: CompareConfig, source: Any) -> Any:
    """timm's differential attention given a plain ViT's weights, as timm.create_model(..., attn_layer='diff') does."""
    model: Any = timm.create_model(config.source, attn_layer="diff")
    model.load_state_dict(source.state_dict(), strict=False)
    return model


def main() -> dict:
    config = parse_config(CompareConfig, description=__doc__)
    require_at_least(0, images=config.images)
    require_at_least(1, calibration_images=config.calibration_images)
    check_model(config.source, config.pretrained, option="--source")
    splits = load_splits(config.dataset, label_column=config.label_column)
    test, unlabelled = splits.test, splits.train
    source = load_model(config.source, config.pretrained, option="--source")
    try:
        check_source(source)
    except ValueError as error:
        raise InputError(f"--source {config.source}: {error}") from error
    heads, head_dim = source.blocks[0].attn.num_heads, source.blocks[0].attn.head_dim
    halves, wide = (head_dim // 2, head_dim // 2), (head_dim * 3 // 4, head_dim - head_dim * 3 // 4)
    calibration = list(image_batches(source, unlabelled, config.calibration_images))
    ways = {
        "timm, attn_layer='diff'": lambda: _stock(config, source),
        f"slice, {halves}, lambda 0": lambda: from_vit(source, "slice", branch_dims=halves, lambda_init=0.0),
        f"svd, {halves}, lambda 0": lambda: from_vit(source, branch_dims=halves, lambda_init=0.0),
        f"svd, {halves}": lambda: from_vit(source, branch_dims=halves),
        f"svd, {wide} (data-free default)": lambda: from_vit(source),
        f"calibrated, {halves}": lambda: from_vit(source, images=calibration, branch_dims=halves),
        f"calibrated, {wide} (default)": lambda: from_vit(source, images=calibration),
        "calibrated, and 4 passes of distillation": lambda: _distilled(source, calibration),
        "mirror, version 2": lambda: from_vit(source, attn="diff_v2"),
    }
    if heads % 2 == 0 and source.attn_pool is None:
        ways["pairs, neighbours"] = lambda: from_vit(source, "pairs")
        ways["pairs, by their maps"] = lambda: from_vit(source, "pairs", images=calibration)
    else:
        why = f"{heads} heads do not pair" if heads % 2 else "its attention pool would have to change, too"
        log0(f"no pairs: they make one head of two, and {why}")
    result = {}
    log0(f"{'conversion':41s}  agreement    KL (nats)  output error  seconds to convert")
    for name, convert in ways.items():
        start = time.perf_counter()
        model = convert()
        seconds = time.perf_counter() - start
        report = conversion_report(source, model, image_batches(source, test, config.images or len(test)))
        result[name] = {**report.summary(), "seconds": round(seconds, 2)}
        head = "        -            -" if report.agreement is None else f"{report.agreement:9.2%}  {report.kl:11.4f}"
        log0(f"{name:41s}  {head}  {report.output_error:12.3f}  {seconds:8.2f}")
    return result


if __name__ == "__main__":
    run(main)
