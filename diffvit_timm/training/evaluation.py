"""Evaluate a network on a split, on any number of processes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ..console import progress
from ..inspection.accuracy import Accuracy

__all__ = ["evaluate"]


@torch.inference_mode()
def evaluate(
    model: Any, loader: DataLoader, accelerator: Accelerator, label: str, after_batch: Callable[[], None] | None = None
) -> Accuracy:
    """Measure the accuracy of a network; every image counts once.

    Args:
        model: network, which is put into evaluation mode.
        loader: prepared loader from `evaluation_batches`.
        accelerator: accelerator of the run.
        label: name of the split, for the progress.
        after_batch: function to call after every batch.
    """
    model.eval()
    columns: list[tuple[Tensor, ...]] = []
    with progress(label, len(loader)) as advance:
        for images, labels in loader:
            with accelerator.autocast():
                logits = model(images)
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
            columns.append(accelerator.gather_for_metrics((logits.argmax(-1), labels, losses)))
            advance("")
            if after_batch:
                after_batch()
    return Accuracy.of(*(torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)))
