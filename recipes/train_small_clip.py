"""Train a small CLIP on images whose captions are sentences with their class names. It takes minutes.

    python recipes/train_small_clip.py --dataset mnist --output runs/clip-mnist
    diffvit compare clip --clip runs/clip-mnist --dataset mnist --convert calibrated

The result is not a good CLIP. It has trained weights, on which the zero-shot pipeline and the conversion can be tried
without a download of hundreds of MB. Results: recipes/results/clip.md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from diffvit_timm.cli.console import run
from diffvit_timm.console import log0, track
from diffvit_timm.data.augment import without_seed
from diffvit_timm.data.config import DatasetConfig
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.data.splits import take_stratified
from diffvit_timm.errors import InputError, require_at_least
from diffvit_timm.files import fill_folder
from diffvit_timm.options import CheckedOptions
from diffvit_timm.output import claim_new_folder
from diffvit_timm.zero_shot.clip import require_open_clip
from diffvit_timm.zero_shot.imagenet_names import readable
from diffvit_timm.zero_shot.prompts import TEMPLATES

# Sentences to learn from. The model has not seen the templates of prompts.TEMPLATES that are missing here.
CAPTIONS = ('a photo of the number: "{}".', "a {}.", "this is {}", "a small picture of {}.")

MODEL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 128, "head_width": 32, "patch_size": 4},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: DatasetConfig("mnist")
    )
    max_train_samples: int = 12000
    """Number of training images to use, drawn at random with the class proportions of the dataset; 0: all."""
    epochs: int = 5
    """Passes over the training images."""
    batch_size: int = 128
    """Number of pairs of image and caption per update."""
    lr: float = 1e-3
    """Peak learning rate, after a cosine warm-up over a tenth of the updates and before a cosine decay."""
    seed: int = 0
    """Seed of the weights, the shuffling and the choice of captions."""
    output: str = "runs/small-clip"
    """Folder of the model, new or empty."""

    def __post_init__(self) -> None:
        require_at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        require_at_least(0, max_train_samples=self.max_train_samples, seed=self.seed)
        self.require("lr", self.lr > 0, "must be above 0")


def main(options: Options) -> dict:
    with claim_new_folder(options.output) as folder:
        return train(options, folder)


def train(options: Options, folder: Path) -> dict:
    """Train a CLIP model, and save it in a folder."""
    open_clip = require_open_clip()
    splits = options.data.load()
    count = min(options.max_train_samples or len(splits.train), len(splits.train))
    images = take_stratified(splits.train, count)

    torch.manual_seed(options.seed)
    model = open_clip.CLIP(**MODEL)
    size = MODEL["vision_cfg"]["image_size"]
    preprocess = {"size": size, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    transform = open_clip.image_transform(
        size, is_train=False, mean=preprocess["mean"], std=preprocess["std"], interpolation="bicubic"
    )
    names = [readable(name) for name in splits.class_names]
    tokenize = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    captions = torch.stack([tokenize([caption.format(name) for caption in CAPTIONS]) for name in names])
    # captions: (classes, sentences, context length)

    loader = DataLoader(ImageDataset(images, without_seed(transform)), options.batch_size, shuffle=True)
    loss = train_clip(model, loader, captions, options)
    save(model, preprocess, folder)
    known = [name for name, templates in TEMPLATES.items() if set(templates) & set(CAPTIONS)]
    log0(f"{folder}: a folder of weights for open_clip. Loss: contrastive loss in nats, mean of an epoch.")
    log0(f"Its captions contain the templates {', '.join(known)}. It has not seen the other templates.")
    return {"output": str(folder), "loss": loss, "images": len(images)}


def train_clip(model: Any, loader: DataLoader, captions: Tensor, options: Options) -> float:
    """Train a CLIP model in place, and return the mean loss of the last epoch in nats.

    Args:
        model: CLIP model of open_clip.
        loader: batches of images (B, C, H, W) and class labels (B,).
        captions: tokens of the sentences of each class, (classes, sentences, context length).
        options: epochs and learning rate.

    Raises:
        InputError: there is only one update, which is too short for the warm-up.
    """
    updates = options.epochs * len(loader)
    if updates < 2:
        raise InputError(
            f"`epochs={options.epochs}` is a single update of `batch_size={options.batch_size}`: give more epochs"
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    warmup = max(0.1, 1.5 / updates)  # share of the updates; a warm-up of a single update would divide by 0 in torch
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, updates, pct_start=warmup)
    mean_loss = 0.0
    for epoch in range(options.epochs):
        total = 0.0
        for images, labels in track(loader, f"epoch {epoch + 1}", len(loader)):
            chosen = captions[labels, torch.randint(captions.shape[1], labels.shape)]  # (B, context length)
            loss = contrastive_loss(
                model.encode_image(images, normalize=True), model.encode_text(chosen, normalize=True), labels,
                model.logit_scale.exp().clamp(max=100),
            )  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        mean_loss = total / len(loader)
        log0(f"epoch {epoch + 1}/{options.epochs}: loss {mean_loss:.3f}")
    return mean_loss


def contrastive_loss(images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Compute CLIP's loss for batches in which several pairs have the same class, and all of these match (UniCL).

    `Unified Contrastive Learning in Image-Text-Label Space` - https://arxiv.org/abs/2204.03610, equation 2

    Args:
        images, texts: embeddings, (B, dim), with rows of length 1.
        labels: classes, (B,).
        scale: factor of the cosine similarities.
    """
    targets = (labels[:, None] == labels).float()  # (B, B)
    targets = targets / targets.sum(dim=1, keepdim=True)
    similarities = scale * images @ texts.T  # (B, B)
    return (F.cross_entropy(similarities, targets) + F.cross_entropy(similarities.T, targets)) / 2


def save(model: Any, preprocess: dict[str, Any], folder: Path) -> None:
    """Write a folder that open_clip loads by the name local-dir:FOLDER."""
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    with fill_folder(folder, "the model", "train again") as temporary:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary / "open_clip_model.safetensors")
        (temporary / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    run(Options, main, description=__doc__)
