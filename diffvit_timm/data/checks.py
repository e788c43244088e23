"""Checks before a training: every validation and test image decodes. Images that two splits share cause a warning."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import PIL
from huggingface_hub import cached_assets_path
from torch.utils.data import DataLoader, Dataset

from ..console import counted, log0, track
from .fingerprint import shared_images
from .images import decode_image
from .splits import Splits
from .stream import Stream

if TYPE_CHECKING:
    import datasets

__all__ = ["check_images"]

BATCH_SIZE = 64
FEW = 512  # so few images are decoded in this process, because workers take longer to start


def check_images(splits: Splits, workers: int = 0) -> None:
    """Decode all validation and test images once, and warn of images that two splits share.

    Otherwise a broken test image would be found after all epochs. Data with the same fingerprints are not checked
    twice: the warning is kept in the assets cache of huggingface_hub.

    Args:
        splits: the splits of a training.
        workers: number of processes that decode; 0: this process.

    Raises:
        InputError: an image that does not decode.
    """
    cached = _cache_file(splits)
    warning = None
    if cached:
        with contextlib.suppress(OSError):
            warning = cached.read_text()
    if warning is None:
        for role in ("val", "test"):
            _decode_all(getattr(splits, role), role, workers)
        warning = _shared_warning(splits)
        if cached:
            with contextlib.suppress(OSError):  # a full or read-only cache: the check is made again next time
                own = cached.with_name(f"{cached.name}-{os.getpid()}")  # another job may check the same data
                own.write_text(warning)
                own.replace(cached)
    if warning:
        log0(warning)


def _cache_file(splits: Splits) -> Path | None:
    """Return the file that exists if these splits have been checked; None if there can be no cache."""
    try:
        folder = cached_assets_path("diffvit_timm", "checked_images", f"pillow-{PIL.__version__}")
    except (OSError, ValueError):
        return None
    return folder / "-".join(splits.fingerprints.values())


def _decode_all(split: "datasets.Dataset", role: str, workers: int) -> None:
    loader: DataLoader = DataLoader(
        _Decoded(split), BATCH_SIZE, num_workers=workers if len(split) > FEW else 0, collate_fn=len
    )
    for _ in track(loader, f"decoding {len(split):,} {role} images once", len(loader)):
        pass


class _Decoded(Dataset):
    """Decodes the images of a split, and keeps nothing."""

    def __init__(self, split: "datasets.Dataset") -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> None:
        decode_image(self.split[index]["image"], "RGB", f"image {index} of split {self.split.split}")


def _shared_warning(splits: Splits) -> str:
    roles = {"train": splits.train, "val": splits.val, "test": splits.test}
    shared = shared_images({role: split for role, split in roles.items() if not isinstance(split, Stream)})
    return "\n".join(
        f"warning: {counted(count, 'image')} of {first} {'is' if count == 1 else 'are'} also in {second}, byte for byte"
        for (first, second), count in shared.items()
    )
