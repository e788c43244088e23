"""The main job on bundled data: train a plain ViT, convert it, fine-tune it and its plain twin."""

import copy
from pathlib import Path

import timm
import torch

from ..console import log0
from ..conversion.report import conversion_report
from ..conversion.weights import resolve_method
from ..data.digits import digits_splits
from ..data.loading import image_batches
from ..errors import InputError
from ..models.from_vit import from_vit
from ..models.pretrained import brings_weights
from ..output import output_folder
from .accelerator import make_accelerator
from .config import TrainConfig
from .trainer import Trainer

__all__ = ["demo"]

# Options of the three trainings. Everything else is as the user gave it.
SOURCE = dict(
    dataset="digits", model="plain ViT", attn="plain", epochs=60, batch_size=64, lr=2e-3, layer_decay=1.0,
    warmup_epochs=5.0, augment="none", mixup=0.8, cutmix=1.0, workers=0
)  # fmt: skip
FINE_TUNING = dict(model="Diff-ViT", attn="diff", epochs=20, lr=5e-4)


def demo(config: TrainConfig) -> dict:
    """Pretrain on one third of scikit-learn's digits, convert, and fine-tune on the other two thirds.

    Args:
        config: seed, output, precision and conversion are read; data, models and lengths are the demo's own.

    Returns:
        The result of the fine-tuned Diff-ViT, with the accuracies of the source, the converted network and the twin.

    Raises:
        InputError: an option that has no place in the demo.
    """
    if config.model.conversion not in ("auto", "svd", "slice"):
        raise InputError(f"`conversion={config.model.conversion}`: the demo takes svd or slice")
    for name in ("resume", "dry_run", "eval_only", "push_to_hub", "progressive_sizes"):
        config.require_default(name, "has no place in the demo, which is three short trainings")
    own = brings_weights(config.model.model)
    config.model.require("model", not own, "has no place in the demo, which has its own models: leave it out")
    with output_folder(config.run.output, "demo") as output:
        return _run(config, output)


def _run(config: TrainConfig, output: Path) -> dict:
    """Run the three trainings in a folder."""
    accelerator = make_accelerator(config.run, output, config.optim.ema)
    source_data, target_data = digits_splits()
    source_config = config.replace(**SOURCE)
    diff_config = source_config.replace(**FINE_TUNING)
    twin_config = diff_config.replace(model="plain twin", attn="plain")

    log0(f"1 of 3: a plain ViT learns {len(source_data.train)} images of digits")
    torch.manual_seed(config.run.seed)
    source = timm.create_model(
        "diffvit_tiny_patch16", attn="plain", img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4,
        num_classes=10, pretrained_cfg_overlay=dict(mean=(0.5,), std=(0.5,), crop_pct=1.0)
    )  # fmt: skip
    pretrained = Trainer(source_config, accelerator, source, source_data, output / "source").fit()

    log0(f"2 of 3: it is converted to a Diff-ViT and fine-tuned on {len(target_data.train)} other images")
    model, twin = from_vit(source, config.model.conversion), copy.deepcopy(source)
    report = conversion_report(source, model, image_batches(source, target_data.test))
    log0(str(report))
    conversion = {"method": resolve_method(config.model.conversion, "diff"), **report.summary()}
    trainer = Trainer(diff_config, accelerator, model, target_data, output / "diff", conversion)
    converted = trainer.evaluate(trainer.test_loader, "converted")
    tuned = trainer.fit()

    log0("3 of 3: its plain twin is fine-tuned in the same way")
    plain = Trainer(twin_config, accelerator, twin, target_data, output / "plain").fit()
    accelerator.end_training()

    log0(f"\ndigits, {tuned['test_images']} test images                test accuracy  (95 % interval)")
    for name, accuracy, (low, high) in (
        (f"plain ViT, trained on {len(source_data.train)} images", *_accuracy(pretrained)),
        ("converted to a Diff-ViT, not trained", converted.accuracy, converted.interval),
        (f"Diff-ViT, fine-tuned on {len(target_data.train)} more", *_accuracy(tuned)),
        ("plain twin, fine-tuned the same way", *_accuracy(plain)),
    ):
        log0(f"  {name:40s} {accuracy:10.1%}       ({low:.1%} to {high:.1%})")
    return {
        **tuned,
        "converted_accuracy": converted.accuracy,
        "source_accuracy": pretrained["test_accuracy"],
        "plain_twin_accuracy": plain["test_accuracy"],
        "plain_twin_interval_95": plain["test_interval_95"],
        "output": str(output / "diff"),
    }


def _accuracy(result: dict) -> tuple[float, tuple[float, float]]:
    return result["test_accuracy"], result["test_interval_95"]
