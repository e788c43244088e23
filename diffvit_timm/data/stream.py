"""Training images that are streamed, for datasets that do not fit on the disk."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import default_collate

from ..errors import InputError
from .augment import Transform
from .decoding import decode_image
from .images import MODES
from .labels import target_of

if TYPE_CHECKING:
    from datasets import IterableDataset

__all__ = ["Stream", "StreamedImages"]

BUFFER = 2048  # undecoded images in the shuffle buffer, from which the next image is drawn at random
BUFFER_FILES = 10  # number of files that fill the buffer; with a single file, datasets waits five seconds at its end


class Stream:
    """A streamed training split, with the columns of a stored split (see `Splits`).

    Args:
        rows: undecoded rows, in the order of the files.
        length: number of images per epoch. The next epoch continues where the last one ended, and the stream starts
            again at its end.
    """

    def __init__(self, rows: "IterableDataset", length: int) -> None:
        self.rows = rows
        self.length = length

    def __len__(self) -> int:
        return self.length


class StreamedImages:
    """The images of a stream, shuffled with a buffer, decoded and transformed.

    Args:
        stream: stream to read.
        transform: image and seed -> tensor (C, H, W).
        in_chans: 1 (grey) or 3 (RGB).
        seed: seed of the shuffling and the augmentation. Both depend only on the seed and the number of workers.
    """

    def __init__(self, stream: Stream, transform: Transform, in_chans: int = 3, seed: int = 0) -> None:
        shards = min(BUFFER_FILES, stream.rows.num_shards)
        shuffled = stream.rows.shuffle(seed=seed, buffer_size=BUFFER, max_buffer_input_shards=shards)
        self.rows = CheckedRows(shuffled.repeat(None).map(_add_position, with_indices=True))
        self.length = len(stream)
        self.transform = transform
        self.target = target_of(stream.rows.features)
        self.mode = MODES[in_chans]
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def collate(self, rows: list[dict[str, Any]]) -> list[Tensor]:
        """Decode, transform and stack rows -> images (B, C, H, W), and labels (B,) or (B, classes).

        This happens after the shuffling, so that the buffer holds undecoded images. In distributed training, the first
        process reads the images of all processes.
        """
        return default_collate([(self._image(row), self.target(row["label"])) for row in rows])

    def _image(self, row: dict[str, Any]) -> Tensor:
        position = row["position"]
        seed = np.random.SeedSequence((self.seed, position)).generate_state(1)[0]
        return self.transform(decode_image(row["image"], self.mode, f"image {position} of the stream"), int(seed))


def _add_position(row: dict[str, Any], position: int) -> dict[str, Any]:
    return {**row, "position": position}


class CheckedRows(TorchIterableDataset):
    """The rows of a stream, for a DataLoader. Only the errors of reading them become one line.

    Args:
        rows: rows of `datasets`, which share their files among the workers of a DataLoader.
    """

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows.

        Raises:
            InputError: a file is damaged, the network fails, or a row is refused.
        """
        rows = iter(self.rows)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except InputError:  # of a check of the rows, such as that of their labels
                raise
            except Exception as error:  # of pyarrow, datasets, fsspec or the network
                lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
                raise InputError(
                    f"the stream of training images cannot be read ({lines[-1]}): check its files and the network"
                ) from error
            yield row
