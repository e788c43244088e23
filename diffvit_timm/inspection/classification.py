"""Classify image files in batches."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.decoding import decode_image
from ..errors import InputError
from ..models.outputs import is_multi_label_model, probabilities

__all__ = ["Classified", "classify_files"]


@dataclasses.dataclass(frozen=True)
class Classified:
    """An image file with what a classifier predicts for it, or the error of a file that does not decode.

    Attributes:
        path: image file.
        predicted: the likeliest classes with their probabilities, the likeliest first; empty if there is an error.
        true: the true class with its probability; None if it is not known.
        error: why there is no prediction.
    """

    path: Path
    predicted: Sequence[tuple[str, float]] = ()
    true: tuple[str, float] | None = None
    error: InputError | None = None


def classify_files(
    network: nn.Module,
    transform: Any,
    mode: str,
    names: Sequence[str],
    paths: Sequence[Path],
    top: int,
    batch_size: int = 32,
    workers: int = 0,
) -> Iterator[Classified]:
    """Classify image files in their order. A file that does not decode does not stop the others.

    Args:
        network: classifier in evaluation mode.
        transform: transform of one image to (C, H, W).
        mode: PIL mode of the images.
        names: class names. The name of an image's folder is its true class, if exactly one class has this name, and
            the network was trained for one class per image.
        paths: image files.
        top: number of likeliest classes per image.
        batch_size: number of images that are read and classified together.
        workers: number of processes that read images; 0: this one reads them.
    """
    device = next(network.parameters()).device
    index = {name: number for number, name in enumerate(names)}
    unique = {name for name, count in Counter(names).items() if count == 1 and not is_multi_label_model(network)}
    loader = DataLoader(_ImageFiles(paths, transform, mode), batch_size, num_workers=workers, collate_fn=list)
    for batch in loader:
        images = [image for _, image in batch if isinstance(image, Tensor)]
        shares: Iterator[Tensor] = iter(())
        if images:
            with torch.inference_mode():
                shares = iter(probabilities(network, network(torch.stack(images).to(device))).cpu())  # (B, classes)
        for path, image in batch:
            if not isinstance(image, Tensor):
                yield Classified(path, error=image)
                continue
            share, folder = next(shares), path.absolute().parent.name
            found = share.topk(min(top, len(names)))
            predicted = [(names[c], p) for c, p in zip(found.indices.tolist(), found.values.tolist(), strict=True)]
            yield Classified(path, predicted, (folder, share[index[folder]].item()) if folder in unique else None)


class _ImageFiles(Dataset):
    """Image files: the path of each with its transformed image, (C, H, W), or with its error if it does not decode."""

    def __init__(self, paths: Sequence[Path], transform: Any, mode: str) -> None:
        self.paths = paths
        self.transform = transform
        self.mode = mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, Tensor | InputError]:
        path = self.paths[index]
        try:
            return path, self.transform(decode_image({"bytes": None, "path": str(path)}, self.mode, str(path)))
        except InputError as error:
            return path, error
