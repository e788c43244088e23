"""Train a segmentation head, and its backbone if wanted, and test it."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ..console import track
from ..data.augment import seed_transforms
from ..data.loading import model_data_config
from ..data.masks import IGNORED, MaskedImages, MaskedSplits, collate
from ..errors import DivergedError, InputError
from ..inspection.iou import Segmentations
from ..layers.hooks import evaluating
from ..models.segmentation import SegmentationNetwork, resize
from .precision import autocast
from .segmentation_config import SegmentationOptions

__all__ = ["measure_segmentation", "predict_masks", "train_segmentation"]

WARMUP = 0.1  # share of the updates


def train_segmentation(
    network: SegmentationNetwork,
    splits: MaskedSplits,
    options: SegmentationOptions,
    device: str,
    log: Callable[[dict[str, float]], None],
    label: str = "",
) -> None:
    """Train a network, in place, with the cross-entropy of all pixels that have a class.

    Args:
        network: the network, whose head has one output per class. It is moved to the device.
        splits: train is learned from.
        options: how.
        device: device to compute on.
        log: function that gets the numbers of each epoch.
        label: show progress under this label.

    Raises:
        InputError: fewer images than a batch, or an image that does not decode.
        DivergedError: the loss is not finite.
    """
    if options.batch_size > len(splits.train):
        raise InputError(f"`batch_size={options.batch_size}` is more than the {len(splits.train)} training images")
    network.to(device)
    config = model_data_config(network.backbone)
    transform = _Augmentation(options, config["input_size"][-2:])
    images = MaskedImages(splits.train, len(splits.class_names), config, transform, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    loader = DataLoader(
        images, options.batch_size, shuffle=True, generator=generator, num_workers=options.workers, drop_last=True
    )
    optimizer = _optimizer(network, options)
    updates = options.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=max(2, updates),
        pct_start=WARMUP, cycle_momentum=False
    )  # fmt: skip
    scaler = torch.amp.GradScaler(device, enabled=options.precision == "fp16")
    network.train()
    for epoch in range(options.epochs):
        images.epoch, losses = epoch, []
        for batch, masks in track(loader, f"{label}: epoch {epoch + 1} of {options.epochs}", len(loader)):
            with autocast(device, options.precision):
                logits = network(batch.to(device))
            loss = F.cross_entropy(resize(logits.float(), masks.shape[-2:]), masks.to(device), ignore_index=IGNORED)
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise DivergedError(f"the loss of {label} is {losses[-1]} in epoch {epoch + 1}: lower `lr`")
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        log({"epoch": epoch + 1, "loss": float(np.mean(losses)), "lr": float(schedule.get_last_lr()[0])})


def _optimizer(network: SegmentationNetwork, options: SegmentationOptions) -> torch.optim.Optimizer:
    """Create AdamW for the head, and for the backbone at its own rate. Vectors have no weight decay."""
    groups = []
    for part, rate in ((network.head, options.lr), (network.backbone, options.lr * options.backbone_lr_scale)):
        trained = [p for p in part.parameters() if p.requires_grad]
        for decays, decay in ((True, options.weight_decay), (False, 0.0)):
            chosen = [p for p in trained if (p.ndim > 1) == decays]
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]])


class _Augmentation:
    """A random part of an image and of its mask, at the network's size."""

    def __init__(self, options: SegmentationOptions, size: tuple[int, int]) -> None:
        import albumentations as A  # not above: it is slow to import

        steps: list[Any] = [A.Resize(*size)]
        if options.augment != "none":
            steps = [A.RandomResizedCrop(size, scale=(options.crop_scale, 1.0))]
        if options.augment == "crop+flip":
            steps.append(A.HorizontalFlip(p=0.5))
        self.compose = A.Compose(steps)

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        seed_transforms(self.compose, seed)
        result = self.compose(image=image, mask=mask)
        return result["image"], result["mask"]


def measure_segmentation(
    network: SegmentationNetwork,
    splits: MaskedSplits,
    options: SegmentationOptions,
    device: str,
    label: str = "",
    shown: int = 0,
) -> tuple[Segmentations, list[np.ndarray]]:
    """Compare the predictions of the test images with their masks, at the size of the masks.

    Args:
        network: trained network, which is moved to the device.
        splits: test is classified.
        options: precision, batch size and workers.
        device: device to compute on.
        label: show progress under this label.
        shown: number of predicted masks to return.

    Returns:
        The counted pixels, and the predicted masks of the first images, (H, W) each.
    """
    pairs = predict_masks(network, splits, options, device, label)
    first = list(itertools.islice(pairs, shown))
    counts = Segmentations.of(itertools.chain(first, pairs), len(splits.class_names), IGNORED)
    return counts, [predicted for predicted, _ in first]


@torch.inference_mode()
def predict_masks(
    network: SegmentationNetwork, splits: MaskedSplits, options: SegmentationOptions, device: str, label: str = ""
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the predicted and the true mask of each test image, (H, W) each; arguments as in `measure_segmentation`."""
    config = model_data_config(network.to(device).backbone)
    images = MaskedImages(splits.test, len(splits.class_names), config)
    loader = DataLoader(images, options.batch_size, num_workers=options.workers, collate_fn=collate)
    with evaluating(network):
        for batch, masks in track(loader, f"{label}: test", len(loader)):
            with autocast(device, options.precision):
                logits = network(batch.to(device)).float()
            for own, mask in zip(logits, masks, strict=True):
                yield _classes(own, mask.shape).cpu().numpy(), mask.numpy()


def _classes(logits: Tensor, size: Any) -> Tensor:
    """Return the likeliest class of every pixel, (classes, h, w) -> (H, W)."""
    return resize(logits[None], size)[0].argmax(0)
