"""Evaluate a network on a split, on any number of processes."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from ..console import progress
from .objective import Objective

__all__ = ["evaluate"]


@torch.inference_mode()
def evaluate(
    model: Any,
    loader: DataLoader,
    objective: Objective,
    accelerator: Accelerator,
    label: str,
    after_batch: Callable[[], None] | None = None,
) -> Any:
    """Return the score of a network on a split: an `Accuracy` or a `MultiLabelScore`. Every image counts once.

    Args:
        model: network, which is put into evaluation mode.
        loader: prepared loader from `evaluation_batches`.
        objective: what the network learns, from `make_objective`.
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
            rows = (*objective.outputs(logits), labels, objective.losses(logits, labels))
            columns.append(accelerator.gather_for_metrics(rows))
            advance("")
            if after_batch:
                after_batch()
    return objective.score(*(torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)))
