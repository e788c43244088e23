"""The signals with which clusters announce their end."""

import contextlib
import signal
from collections.abc import Iterator

import torch
from accelerate import Accelerator

__all__ = ["StopSignal"]


class StopSignal:
    """Notes SIGTERM and SIGUSR1, so that a training can stop where it is whole.

    Attributes:
        number: of the signal that came; 0: none.
    """

    def __init__(self) -> None:
        self.number = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Until the end of this context; then as before."""
        numbers = (signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        self.number = number

    def agree(self, accelerator: Accelerator) -> None:
        """Give every process the signal that any of them has noted; all must call it at the same update."""
        numbers = torch.tensor([self.number], device=accelerator.device)
        self.number = int(accelerator.gather(numbers).max())
