"""Run the trainings of a study, in this process or in several, and write each into the ledger when it ends."""

import concurrent.futures
import dataclasses
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from ... import __version__
from ...console import discard, log0
from ...errors import DivergedError, InputError
from ...models.pretrained import load_model
from ...training.config import TrainConfig
from ...training.model import check_network
from ..flops import forward_flops
from ..robustness import CLEAN, conditions, measure_robustness
from ..timing import hardware_name
from .ledger import Ledger, Row
from .protocol import Planned, Protocol
from .schedule import plan_tests, plan_tuning

__all__ = ["check_arms", "run_parts"]

# Results on the test images in the ledger, and their names in result.json.
TESTED = {
    "test_accuracy": "test_accuracy", "test_loss": "test_loss", "calibration_error": "test_calibration_error"
}  # fmt: skip

_busy = threading.Lock()  # held during a run of this process
Plan = Callable[[Protocol, Ledger, Collection[str]], list[Planned]]


def check_arms(protocol: Protocol) -> None:
    """Check that the network of every arm exists and can be converted, and that there are enough images to corrupt.

    Raises:
        InputError: as `check_network`, with the name of the arm; or too few test images.
    """
    for arm in protocol.arms:
        try:
            check_network(arm.train)
        except InputError as error:
            raise InputError(f"the arm {arm.name}: {error}") from error
    if count := protocol.corruption_images:
        images = protocol.arms[0].train.data.load().test  # those of all arms
        protocol.require("corruption_images", count <= len(images), f"exceeds the {len(images)} test images")


def run_parts(
    protocol: Protocol,
    ledger: Ledger,
    folder: Path,
    parts: Collection[str] = ("tune", "test"),
    arms: Collection[str] = (),
    minutes: float = 0.0,
    processes: int = 1,
    keep_runs: bool = False,
) -> None:
    """Run what is missing in the ledger: first the choice of the learning rates, then the tests.

    Args:
        protocol: the study.
        ledger: its ledger.
        folder: folder of the study, which this process has claimed.
        parts: 'tune', 'test' or both.
        arms: names of the arms to run; none: all.
        minutes: time after which no run begins; 0: no limit.
        processes: number of runs at a time; several ones get a process and a thread each.
        keep_runs: keep the folders of the runs, with their weights.

    Raises:
        InputError: bad input of a training; or tests without a learning rate, if only those are asked for.
    """
    arms = arms or [arm.name for arm in protocol.arms]
    if "tune" not in parts and (missing := plan_tuning(protocol, ledger, arms)):
        raise InputError(
            f"`part=test` needs the best learning rates, but {len(missing)} runs that choose them are missing (the "
            f"first is that of {missing[0].arm}): run `part=tune` first"
        )
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    plans: dict[str, Plan] = {"tune": plan_tuning, "test": plan_tests}
    with _executor(processes) as executor:
        try:
            for part in parts:
                runs = _Runs(protocol, ledger, folder, arms, deadline, processes, keep_runs)
                if not runs.finish(plans[part], executor):
                    log0(f"{minutes:g} minutes are over: the same command continues the study")
                    return
        except BaseException as error:
            for child in multiprocessing.active_children():
                child.terminate()  # its training takes a checkpoint and ends
            if isinstance(error, BrokenProcessPool):
                raise InputError(
                    f"a process of `processes={processes}` died, perhaps because the memory is too small: lower it; "
                    "the same command continues the study"
                ) from error
            raise


@dataclasses.dataclass(frozen=True)
class _Runs:
    """The runs of one part; the attributes are those of `run_parts`, with the time at which no more run begins."""

    protocol: Protocol
    ledger: Ledger
    folder: Path
    arms: Collection[str]
    deadline: float
    processes: int
    keep_runs: bool

    def finish(self, plan: Plan, executor: Any) -> bool:
        """Run trainings until none is missing or the time is over; returns whether none is missing."""
        running: dict[concurrent.futures.Future, Planned] = {}
        while True:
            # The plan changes with every result, because a grid may be extended.
            planned = plan(self.protocol, self.ledger, self.arms)
            missing = [run for run in planned if run not in running.values()]
            for number, run in enumerate(missing[: self.processes - len(running)]):
                if time.monotonic() >= self.deadline:
                    break
                log0(f"\n{_name(run)} begins; runs that are still missing: {len(planned) - number}")
                config = self.protocol.config(run).replace(output=str(self.place(run)), resume="auto")
                running[executor.submit(_finish_run, self.protocol, run, config)] = run
            if not running:
                return not missing
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                run, row = running.pop(future), future.result()
                try:
                    self.ledger.add(row)
                except InputError:  # other images: the next call must not resume this run
                    shutil.rmtree(self.place(run), ignore_errors=True)
                    raise
                _print_row(row)
                if not self.keep_runs:
                    shutil.rmtree(self.place(run), ignore_errors=True)

    def place(self, run: Planned) -> Path:
        """Return the folder of a training."""
        letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in run.arm)
        return self.folder / "runs" / f"{run.part}-{letters[:40]}-{run.rate:g}-{run.seed}-{self.protocol.checksum(run)}"


def _name(run: Planned | Row) -> str:
    return f"{run.part}: {run.arm}, lr {run.rate:g}, seed {run.seed}"


def _print_row(row: Row) -> None:
    outcome = "diverged" if row.diverged else f"validation accuracy {row.val_accuracy:.2%}"
    if row.endpoint is not None:
        outcome += f", endpoint {row.endpoint:.2%}"
    log0(f"{_name(row)}: {outcome}, {row.seconds:.0f} s")


def _finish_run(protocol: Protocol, run: Planned, config: TrainConfig) -> Row:
    """Train, and return the row of the ledger."""
    with _busy:
        return _train_and_measure(protocol, run, config)


def _train_and_measure(protocol: Protocol, run: Planned, config: TrainConfig) -> Row:
    # Not above: the options of a study do not need accelerate and datasets.
    from ...training.recipe import train
    from ...training.trainer import Trainer
    from ...training.untested import UntestedTrainer

    is_tested = run.part == "test"  # no network is tested before the rates are fixed
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own: dict[str, Any] = {**vars(run), "versions": _versions(), "checksum": protocol.checksum(run)}
    unknown: dict[str, Any] = dict.fromkeys((*TESTED, "parameters", "flops", "updates"))
    start = time.monotonic()
    try:
        result = train(config, "study", trainer=Trainer if is_tested else UntestedTrainer)
    except DivergedError as error:
        log0(f"{error}: the run counts as an accuracy of 0")
        seconds = round(time.monotonic() - start, 1)
        endpoint = 0.0 if is_tested else None
        return Row(
            **own, **unknown, val_accuracy=0.0, endpoint=endpoint, diverged=True, seconds=seconds, images="",
            hardware=hardware_name(device),
        )  # fmt: skip
    model = load_model(config.run.output, parameter="output")
    tested: dict[str, Any] = {name: result[key] if is_tested else None for name, key in TESTED.items()}
    return Row(
        **own,
        val_accuracy=result["val_accuracy"],
        endpoint=_endpoint(protocol, model, config, result, device) if is_tested else None,
        **tested,
        diverged=False,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=forward_flops(model),
        updates=result["updates"],
        seconds=result["seconds"],
        hardware=hardware_name(device),  # with the number of threads that the training took
        images=f"{result['fingerprints']['val'][:8]}-{result['fingerprints']['test'][:8]}",
    )


def _endpoint(protocol: Protocol, model: Any, config: TrainConfig, result: dict, device: str) -> float:
    """Return the endpoint of a finished training."""
    if protocol.endpoint == "test_accuracy":
        return result["test_accuracy"]
    splits, count = config.data.load(), protocol.corruption_images
    images = splits.test.shuffle(seed=0).take(count) if count else splits.test
    listed = conditions()
    right = measure_robustness({"model": model}, images, listed, splits.class_names, device)["model"].right
    return float(np.mean(right[[condition != CLEAN for condition in listed]]))


def _versions() -> str:
    return f"diffvit_timm {__version__}, timm {timm.__version__}, torch {importlib.metadata.version('torch')}"


class _ThisProcess:
    """An executor that runs each call at once, in this process."""

    def __enter__(self) -> "_ThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, function: Callable, *arguments: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        try:
            future.set_result(function(*arguments))
        except SystemExit:
            log0("the same command continues the study")
            raise
        return future


def _executor(processes: int) -> Any:
    if processes == 1:
        return _ThisProcess()
    return concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_start_worker
    )


def _start_worker() -> None:
    """Prepare a process for its runs: one thread, no log, and an end if the main process dies."""
    os.environ["OMP_NUM_THREADS"] = "1"  # otherwise the trainer takes all cores
    torch.set_num_threads(1)
    discard(sys.stderr)  # the logs of several runs would mix; each run folder has its metrics.jsonl
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # a training takes a checkpoint and ends
    with _busy:
        os._exit(1)  # otherwise the process would wait for runs that nobody will send
