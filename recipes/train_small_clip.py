"""Train a small CLIP on images whose captions are their classes in sentences: real weights, made in minutes.

    python recipes/train_small_clip.py --dataset ylecun/mnist --output runs/clip-mnist
    python recipes/compare_clip_resnet.py --clip runs/clip-mnist --dataset ylecun/mnist --convert calibrated

Not a good CLIP: one to try the zero-shot pipeline on, and conversion, without a download of hundreds of MB.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from diffvit_timm.cli.console import run
from diffvit_timm.cli.parser import parse_config
from diffvit_timm.console import log0, track
from diffvit_timm.data.augment import without_seed
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.errors import InputError, require_at_least
from diffvit_timm.files import new_folder
from diffvit_timm.zero_shot.clip import TEMPLATES, open_clip_or_stop, readable

# Sentences to learn from; those of zero_shot.TEMPLATES that are not here are new to the model.
CAPTIONS = ('a photo of the number: "{}".', "a {}.", "this is {}", "a small picture of {}.")

MODEL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 128, "head_width": 32, "patch_size": 4},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@dataclasses.dataclass(frozen=True)
class SmallClipConfig:
    dataset: str = "ylecun/mnist"
    """Name on the Hub, or a folder: parquet files, or one folder of images a class."""
    label_column: str = "label"
    """Column of the class labels."""
    max_train_samples: int = 12000
    """Train on so many of the training images, drawn at random; 0: on all."""
    epochs: int = 5
    """Passes over the training images."""
    batch_size: int = 128
    """Pairs of image and caption an update."""
    lr: float = 1e-3
    """Peak learning rate; warm-up over a tenth of the updates, then decay, both cosines."""
    seed: int = 0
    """Of the weights, the order and the captions."""
    output: str = "runs/small-clip"
    """Folder of the model, new or empty."""

    def __post_init__(self) -> None:
        require_at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        require_at_least(0, max_train_samples=self.max_train_samples)
        if not self.lr > 0:
            raise InputError(f"--lr {self.lr} must be above 0")


def contrastive_loss(images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss where several pairs of a batch have one class, and all of them are right (UniCL).

    `Unified Contrastive Learning in Image-Text-Label Space` - https://arxiv.org/abs/2204.03610, equation 2

    Args:
        images, texts: (B, dim), rows of length 1.
        labels: (B,), classes.
        scale: of the cosine similarities.
    """
    targets = (labels[:, None] == labels).float()
    targets = targets / targets.sum(dim=1, keepdim=True)
    similarities = scale * images @ texts.T
    return (F.cross_entropy(similarities, targets) + F.cross_entropy(similarities.T, targets)) / 2


def main() -> dict:
    config = parse_config(SmallClipConfig, description=__doc__)
    open_clip = open_clip_or_stop()
    folder = new_folder(config.output)
    splits = load_splits(config.dataset, label_column=config.label_column)
    train = splits.train.shuffle(seed=0)
    if config.max_train_samples:
        train = train.take(min(config.max_train_samples, len(train)))
    torch.manual_seed(config.seed)
    model = open_clip.CLIP(**MODEL)
    size = MODEL["vision_cfg"]["image_size"]
    preprocess = {"size": size, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    transform = open_clip.image_transform(
        size, is_train=False, mean=preprocess["mean"], std=preprocess["std"], interpolation="bicubic"
    )
    names = [readable(name) for name in splits.class_names]
    tokenize = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    captions = torch.stack([tokenize([caption.format(name) for caption in CAPTIONS]) for name in names])

    loader = DataLoader(ImageDataset(train, without_seed(transform)), config.batch_size, shuffle=True)
    updates = config.epochs * len(loader)
    if updates < 2:
        raise InputError(f"--epochs {config.epochs} of {len(train)} images are one update: give more of either")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.05)
    warmup = max(0.1, 1.5 / updates)  # of all updates; one alone is none, which torch divides by
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, updates, pct_start=warmup)
    for epoch in range(config.epochs):
        total = 0.0
        for images, labels in track(loader, f"epoch {epoch + 1}", len(loader)):
            chosen = captions[labels, torch.randint(len(CAPTIONS), labels.shape)]
            loss = contrastive_loss(
                model.encode_image(images, normalize=True), model.encode_text(chosen, normalize=True), labels,
                model.logit_scale.exp().clamp(max=100),
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        log0(f"epoch {epoch + 1}/{config.epochs}: loss {total / len(loader):.3f}")
    save(model, preprocess, folder)
    known = [name for name, templates in TEMPLATES.items() if set(templates) & set(CAPTIONS)]
    log0(f"{folder}: templates that it was trained with: {', '.join(known)}; the others are new to it")
    return {"output": str(folder), "loss": total / len(loader), "images": len(train)}


def save(model: Any, preprocess: dict, folder: Path) -> None:
    """The folder that open_clip loads by `local-dir:`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
