"""Training images that are read as they come, for a dataset that has no room on the disk."""

from typing import Any

import numpy as np
from datasets import IterableDataset
from torch import Tensor
from torch.utils.data import default_collate

from .augment import Transform
from .images import MODES, decode_image

__all__ = ["Stream", "StreamedImages"]

BUFFER = 2048  # images, undecoded, out of which the next one is drawn
MIXED = 10  # files that the buffer is filled from; where there is but one, datasets would wait five seconds at its end


class Stream:
    """A training split in the place of one on the disk, with columns as in `Splits`.

    Args:
        rows: undecoded, in the order of the files.
        length: how many images count as an epoch; the stream goes on from one to the next, and begins anew at its end.
    """

    def __init__(self, rows: IterableDataset, length: int) -> None:
        self.rows = rows
        self.length = length

    def __len__(self) -> int:
        return self.length


class StreamedImages:
    """The images of a stream, in an order that is shuffled through a buffer.

    Args:
        stream: to read.
        transform: image and seed -> tensor.
        in_chans: 1 (grey) or 3 (RGB).
        seed: of the order and of the augmentation, which are functions of the seed and the number of workers.
    """

    def __init__(self, stream: Stream, transform: Transform, in_chans: int = 3, seed: int = 0) -> None:
        shards = min(MIXED, stream.rows.num_shards)
        shuffled = stream.rows.shuffle(seed=seed, buffer_size=BUFFER, max_buffer_input_shards=shards)
        self.rows = shuffled.repeat(None).map(_numbered, with_indices=True)
        self.length = len(stream)
        self.transform = transform
        self.mode = MODES[in_chans]
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def collate(self, rows: list[dict[str, Any]]) -> list[Tensor]:
        """Decode and transform here, after the order is drawn: several processes get their images from the first."""
        return default_collate([(self._image(row), row["label"]) for row in rows])

    def _image(self, row: dict[str, Any]) -> Tensor:
        seed = np.random.SeedSequence((self.seed, row["place"])).generate_state(1)[0]
        return self.transform(decode_image(row["image"], self.mode, f"image {row['place']} of the stream"), int(seed))


def _numbered(row: dict[str, Any], place: int) -> dict[str, Any]:
    return {**row, "place": place}
