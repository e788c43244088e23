"""Fine-tune a Diff-ViT, converted from pretrained weights, on the 37 breeds of Oxford-IIIT Pet.

    accelerate launch recipes/finetune_pets.py                    # DeiT-Ti from the Hub, converted; Pets from the Hub
    accelerate launch recipes/finetune_pets.py --attn plain       # its plain twin, same recipe
    accelerate launch recipes/finetune_pets.py --demo             # no download, about a minute on 2 CPU cores

Stock timm's differential attention on the same weights, which it does not convert:

    accelerate launch recipes/finetune_pets.py --model deit_tiny_patch16_224.fb_in1k --model-kwargs attn_layer=diff

Expected results, with hardware and seeds: recipes/README.md.
"""

import copy
import dataclasses

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0
from diffvit_timm.data.digits import digits_splits
from diffvit_timm.data.loading import image_batches
from diffvit_timm.errors import InputError
from diffvit_timm.training.accelerator import make_accelerator
from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.recipe import train
from diffvit_timm.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class PetsConfig(TrainConfig):
    dataset: str = "timm/oxford-iiit-pet"
    """Name on the Hub, or a folder: parquet files, or one folder of images a class."""
    model: str = "diffvit_tiny_patch16.deit_in1k"
    """timm model name with its pretrained tag; local-dir:FOLDER and hf-hub:NAME too."""
    batch_size: int = 16
    """Images an update and process, all accumulation steps together."""
    crop_scale: float = 0.5
    """Smallest share of the image that a random crop keeps."""
    demo: bool = False
    """A minute on scikit-learn's digits, without a download; of data, models and lengths its own."""


def demo(config: PetsConfig) -> dict:
    """The main job on bundled data: train a plain ViT, convert it, fine-tune it and its plain twin on new images."""
    output = output_folder(config.output, "demo")
    if config.conversion not in ("auto", "svd", "slice"):
        raise InputError(f"--conversion {config.conversion}: the demo takes svd or slice")
    for name in ("resume", "dry_run", "eval_only", "push_to_hub"):
        config.leave_out(name, "is not for the demo, three trainings of a minute")
    import timm  # not above: --help need not wait for torch
    import torch

    from diffvit_timm import conversion_report, from_vit
    from diffvit_timm.conversion.weights import resolve_method

    accelerator = make_accelerator(config, output)
    source_data, target_data = digits_splits()
    source_config = dataclasses.replace(
        config, dataset="digits", model="plain ViT", attn="plain", epochs=60, batch_size=64, lr=2e-3, layer_decay=1.0,
        warmup_epochs=5, augment="none", mixup=0.8, cutmix=1.0, workers=0
    )  # fmt: skip
    tuning_config = dataclasses.replace(source_config, model="Diff-ViT", attn="diff", epochs=20, lr=5e-4)
    twin_config = dataclasses.replace(tuning_config, model="plain twin", attn="plain")

    torch.manual_seed(config.seed)
    source = timm.create_model(
        "diffvit_tiny_patch16", attn="plain", img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4,
        num_classes=10, pretrained_cfg_overlay=dict(mean=(0.5,), std=(0.5,), crop_pct=1.0)
    )  # fmt: skip
    pretrained = Trainer(source_config, accelerator, source, source_data, output / "source").fit()

    model, twin = from_vit(source, config.conversion), copy.deepcopy(source)
    report = conversion_report(source, model, image_batches(source, target_data.test))
    log0(str(report))
    conversion = {"method": resolve_method(config.conversion, "diff"), **report.summary()}
    trainer = Trainer(tuning_config, accelerator, model, target_data, output / "diff", conversion)
    converted = trainer.evaluate(trainer.test_loader, "converted")
    tuned = trainer.fit()
    plain = Trainer(twin_config, accelerator, twin, target_data, output / "plain").fit()

    accelerator.end_training()

    log0(f"\ndigits, {tuned['test_images']} test images                test accuracy  (95 % interval)")
    for name, accuracy, interval in (
        (f"plain ViT, trained on {len(source_data.train)} images", *_accuracy(pretrained)),
        ("converted to a Diff-ViT, not trained", converted.accuracy, converted.interval),
        (f"Diff-ViT, fine-tuned on {len(target_data.train)} more", *_accuracy(tuned)),
        ("plain twin, fine-tuned the same way", *_accuracy(plain)),
    ):
        log0(f"  {name:40s} {accuracy:10.1%}       ({interval[0]:.1%} to {interval[1]:.1%})")
    accuracies = {"source": pretrained, "plain_twin": plain}
    return {
        **tuned,
        "converted_accuracy": converted.accuracy,
        **{f"{name}_accuracy": result["test_accuracy"] for name, result in accuracies.items()},
    }


def _accuracy(result: dict) -> tuple[float, tuple[float, float]]:
    return result["test_accuracy"], result["test_interval_95"]


def main() -> dict:
    config = parse_config(PetsConfig, description=__doc__)
    return demo(config) if config.demo else train(config, "finetune_pets")


if __name__ == "__main__":
    run(main)
