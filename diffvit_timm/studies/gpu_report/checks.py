"""The stage `check`: whether the kernels are right on this GPU."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from .groups import reason
from .kernel_checks import Case, cases, check_case
from .network_checks import NETWORK_CHECKS
from .rows import FAILED, TIME_LIMIT, Rows
from .settings import Settings

__all__ = ["failed_checks", "run_checks"]

TOO_LATE = {"not_measured": TIME_LIMIT}


@dataclasses.dataclass(frozen=True, eq=False)
class _Check:
    """One check.

    Attributes:
        settings: what identifies its row.
        title: its name, for an error.
        run: function of the device that returns the measured part of the row; another process can call it.
    """

    settings: dict[str, Any]
    title: str
    run: Callable[[str], dict[str, Any]]

    def outcome(self, device: str) -> dict[str, Any]:
        """Run the check; an error is a failure."""
        try:
            return self.run(device)
        except Exception as error:
            return self.failure(error)

    def failure(self, error: Exception) -> dict[str, Any]:
        """Return the measured part of the row of a check that raised an error."""
        return {"passed": False, "failures": [f"{self.title}: {FAILED}: {reason(error)}"]}


def run_checks(settings: Settings, rows: Rows) -> list[dict[str, Any]]:
    """Run the checks whose rows are missing; returns the rows of all checks of these settings."""
    listed = _listed_checks(settings)
    missing = [check for check in listed if rows.missing(check.settings)]
    for check, outcome in _outcomes(missing, settings.device, _worker_count(settings), rows):
        rows.add(check.settings, **outcome)
    return rows.chosen([check.settings for check in listed])


def failed_checks(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one line for each failed check."""
    return [line for row in rows if not row.get("passed", True) for line in row["failures"]]


def _listed_checks(settings: Settings) -> list[_Check]:
    """Return all checks. Those of networks are the first ones because they take the longest."""
    listed = []
    for name, (only, check) in NETWORK_CHECKS.items():
        for precision in settings.check_precisions:
            if only in (None, precision):
                run = functools.partial(_run_network_check, check, precision)
                listed.append(_Check({"check": name, "precision": precision}, f"{name}, {precision}", run))
    for case in cases(settings.check_precisions, settings.check_tokens):
        listed.append(_Check(case.settings, case.title, functools.partial(_run_case, case)))
    return listed


def _run_network_check(check: Callable[[str, str], list[str]], precision: str, device: str) -> dict[str, Any]:
    failures = check(device, precision)
    return {"passed": not failures, "failures": failures}


def _run_case(case: Case, device: str) -> dict[str, Any]:
    return check_case(case, device)


def _limit_threads() -> None:
    """Let this process use one core, also for torch.compile, which would start processes of its own."""
    torch.set_num_threads(1)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def _worker_count(settings: Settings) -> int:
    """Return the number of processes besides this one. The kernels of a CPU need no compilation."""
    return settings.workers if torch.device(settings.device).type == "cuda" else 0


def _outcomes(checks: list[_Check], device: str, workers: int, rows: Rows) -> Iterator[tuple[_Check, dict[str, Any]]]:
    """Yield each check with its outcome; checks for which no time is left are not measured."""
    if not workers or not checks:
        for check in checks:
            yield check, check.outcome(device) if rows.seconds_left else TOO_LATE
        return
    # Nearly all of the time goes into compiling kernels on the CPU, so several processes share the GPU. They are
    # spawned, because CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_limit_threads)
    running = {pool.submit(check.outcome, device): check for check in checks}
    try:
        for future in concurrent.futures.as_completed(list(running), timeout=rows.seconds_left):
            check = running.pop(future)
            try:
                yield check, future.result()
            except BrokenProcessPool as error:  # a process crashed
                yield check, check.failure(error)
    except TimeoutError:
        for check in running.values():
            yield check, TOO_LATE
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
