"""Faults of run folders: kills at a moment or at a file event, and damaged files; for tests/campaign.py."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from diffvit_timm.training.config import TrainConfig
from diffvit_timm.training.recipe import train

DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(b"\xff\x00\x80garbage" * 99),
    "other encoding": lambda path: path.write_bytes(path.read_text("latin-1").encode("utf-16")),
}

# Audit events of Python that change a folder, and the places of the paths among their arguments.
FILE_EVENTS = {"os.rename": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "open": 0}


def small_run(folder: Path, data: Path, **options) -> TrainConfig:
    """Return the options of a training of seconds, which continues if it was killed."""
    shape = ("patch_size=8", "embed_dim=32", "depth=2", "num_heads=2")
    defaults = dict(
        pretrained=False, img_size=(16,), model_kwargs=shape, epochs=3, batch_size=8, workers=0, augment="none",
        resume="auto", keep_checkpoints=2,
    )  # fmt: skip
    return TrainConfig.from_flat(str(data), "diffvit_tiny_patch16", output=str(folder), **{**defaults, **options})


def outcome(folder: Path) -> tuple:
    """Return the weights, the log and the result of a finished run, without its times."""
    result = json.loads((folder / "result.json").read_text())
    weights = {name: tensor.tolist() for name, tensor in load_file(folder / "best" / "model.safetensors").items()}
    return weights, (folder / "metrics.jsonl").read_text(), {k: v for k, v in result.items() if "second" not in k}


def write_data(folder: Path) -> Path:
    """Write 24 training, 6 validation and 9 test images of three classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
        for label, name in enumerate(("cat", "dog", "owl")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (16, 16, 3), np.uint8)
                pixels[..., label] += 30
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def in_child(function: Callable[[], object]) -> int:
    """Run a function in a forked process that prints nothing, and return its process id."""
    if pid := os.fork():
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        function()
    finally:
        os._exit(1)


def kill_at_event(folder: Path, number: int) -> None:
    """Let this process kill itself at the file event of this number below a folder; -1: count the events only."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in FILE_EVENTS or not str(arguments[FILE_EVENTS[event]]).startswith(str(folder)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        count += 1
        if number == -1:
            (folder.parent / "events").write_text(str(count))
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def resume_and_compare(folder: Path, data: Path, whole: tuple) -> None:
    """Continue a killed run, and require the outcome of a run that nothing stopped."""
    train(small_run(folder, data), "train")
    assert outcome(folder) == whole


class RunFaults:
    """A training to which faults are done.

    Args:
        root: empty folder for the data and the runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = write_data(root / "data")
        start = time.monotonic()
        self._finish(lambda: train(small_run(root / "whole", self.data), "train"))
        self.seconds = time.monotonic() - start
        self.whole = outcome(root / "whole")
        counted = root / "counted" / "run"
        counted.parent.mkdir()
        self._finish(lambda: (kill_at_event(counted, -1), train(small_run(counted, self.data), "train")))
        self.events = int((counted.parent / "events").read_text())

    @staticmethod
    def _finish(function: Callable[[], object]) -> int:
        return os.waitpid(in_child(function), 0)[1]

    def kills_at_events(self, numbers: list[int]) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield trials that kill a training at a file event and continue it."""
        for number in numbers:
            folder = self.root / f"event-{number}"

            def trial(folder=folder, number=number) -> None:
                self._finish(lambda: (kill_at_event(folder, number), train(small_run(folder, self.data), "train")))
                resume_and_compare(folder, self.data, self.whole)

            yield f"kill at file event {number}", trial

    def random_kills(self, count: int, rng: random.Random) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield trials that kill a training once to three times at random moments and continue it."""
        for number in range(count):
            folder = self.root / f"kill-{number}"
            moments = [rng.uniform(0, self.seconds) for _ in range(rng.randint(1, 3))]

            def trial(folder=folder, moments=moments) -> None:
                for moment in moments:
                    pid = in_child(lambda: train(small_run(folder, self.data), "train"))
                    time.sleep(moment)
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                resume_and_compare(folder, self.data, self.whole)

            yield f"kills after {', '.join(f'{moment:.2f} s' for moment in moments)}", trial

    def damages(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield trials that damage one file of a run that was killed in its third epoch, and continue it."""
        killed = self.root / "killed"
        self._finish(lambda: (self._stop_at(7), train(small_run(killed, self.data), "train")))
        for name in sorted(str(path.relative_to(killed)) for path in killed.rglob("*") if path.is_file()):
            for kind, damage in DAMAGES.items():
                folder = self.root / f"damaged-{name.replace('/', '-')}-{kind}"

                def trial(folder=folder, name=name, damage=damage) -> None:
                    shutil.copytree(killed, folder)
                    damage(folder / name)
                    train(small_run(folder, self.data), "train")
                    weights, log, result = outcome(folder)
                    assert (weights, result) == self.whole[::2]
                    assert log == self.whole[1] or name == "metrics.jsonl"

                yield f"{name}: {kind}", trial

    @staticmethod
    def _stop_at(step: int) -> None:
        """Let this process kill itself before an update."""
        from diffvit_timm.training.learner import Learner

        update = Learner.update

        def stopped(self, images: torch.Tensor, labels: torch.Tensor, done: int) -> torch.Tensor:
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return update(self, images, labels, done)

        Learner.update = stopped  # type: ignore[method-assign]
