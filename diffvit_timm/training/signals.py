"""The signals with which clusters and terminals announce the end of a job."""

import contextlib
import signal
from collections.abc import Iterator

import torch
from accelerate import Accelerator

__all__ = ["StopSignal"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopSignal:
    """Records the SIGNALS, so that a training can stop where its state is complete.

    Attributes:
        number: number of the signal that came; 0: none.
    """

    def __init__(self) -> None:
        self.number = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals until this context ends; then restore the previous handlers.

        Signals that are ignored stay ignored: `nohup` protects a training from SIGHUP in this way.
        """
        numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, self._record) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _record(self, number: int, _) -> None:
        self.number = number

    def agree(self, accelerator: Accelerator) -> None:
        """Share a signal that any process recorded with all processes, which must call this at the same update."""
        numbers = torch.tensor([self.number], device=accelerator.device)
        self.number = int(accelerator.gather(numbers).max())
