"""The stage `check`: whether the kernels are right on this GPU."""

import concurrent.futures
import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch

from .kernel_checks import Case, cases, check_case
from .network_checks import NETWORK_CHECKS
from .rows import FAILED, TIME_LIMIT, Rows
from .settings import Settings

__all__ = ["failed_checks", "run_checks"]


def run_checks(settings: Settings, rows: Rows) -> list[dict[str, Any]]:
    """Run the checks whose rows are missing; returns the rows of all checks of these settings."""
    listed = []
    for name, (only, check) in NETWORK_CHECKS.items():
        for precision in settings.check_precisions:
            if only in (None, precision):
                row_settings = {"check": name, "precision": precision}
                listed.append(row_settings)
                if rows.missing(row_settings):
                    rows.add(row_settings, **_outcome(check, settings.device, precision))
    kernel_cases = cases(settings.check_precisions, settings.check_tokens)
    missing = [case for case in kernel_cases if rows.missing(case.settings)]
    for case, outcome in _check_cases(missing, settings, rows):
        rows.add(case.settings, **outcome)
    return rows.chosen([*listed, *(case.settings for case in kernel_cases)])


def failed_checks(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line for each failed check."""
    return [line for row in rows if not row.get("passed", True) for line in row["failures"]]


def _outcome(check: Any, device: str, precision: str) -> dict[str, Any]:
    """Run one check; an error of the check is a failure."""
    try:
        failures = check(device, precision)
    except Exception as error:
        failures = [_failure(f"{check.__name__}, {precision}", error)]
    return {"passed": not failures, "failures": failures}


def _check_case(case: Case, device: str) -> dict[str, Any]:
    """Check one case of the kernels; an error is a failure."""
    torch.set_num_threads(1)
    try:
        return check_case(case, device)
    except Exception as error:
        return {"passed": False, "failures": [_failure(case.title, error)]}


def _failure(title: str, error: Exception) -> str:
    return f"{title}: {FAILED} with {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _check_cases(missing: list[Case], settings: Settings, rows: Rows) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Yield each case with its outcome; cases for which no time is left are not measured."""
    too_late = {"not_measured": TIME_LIMIT}
    if torch.device(settings.device).type != "cuda" or not settings.workers:
        for case in missing:
            yield case, _check_case(case, settings.device) if rows.seconds_left else too_late
        return
    # The time goes into compiling the kernels of each case, one process at a time; new processes share the GPU.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(settings.workers, mp_context=context) as pool:
        running = {pool.submit(_check_case, case, settings.device): case for case in missing}
        try:
            for future in concurrent.futures.as_completed(running, timeout=rows.seconds_left + 1e-3):
                yield running.pop(future), future.result()
        except concurrent.futures.TimeoutError:
            pool.shutdown(wait=False, cancel_futures=True)
            for case in running.values():
                yield case, too_late
