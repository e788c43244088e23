"""Run the stages of a report in a folder."""

from pathlib import Path
from typing import Any

import torch

from ...console import log0
from ...errors import require_device
from ...models.pretrained import check_name
from .attention import run_attention
from .checks import failed_checks, run_checks
from .networks import run_compiled, run_eager
from .report import write_report
from .rows import Rows, require_same_identity
from .settings import STAGES, Settings
from .trainer import run_trainer

__all__ = ["check_settings", "run_stages"]

RUNNERS = {
    "check": run_checks,
    "attention": run_attention,
    "models-eager": run_eager,
    "models-compiled": run_compiled,
    "trainer": run_trainer,
}


def check_settings(settings: Settings) -> None:
    """Check what needs torch and timm: the device and the variants.

    Raises:
        InputError: an unknown device or variant.
    """
    require_device(settings.device)
    for model in settings.models:
        check_name(model, "models")


def run_stages(settings: Settings, folder: Path) -> dict[str, Any]:
    """Run the stages, and write their rows into a folder.

    Args:
        settings: what to measure.
        folder: existing folder. It may have the rows of an earlier call on the same GPU with the same versions, which
            are kept.

    Returns:
        `rows`, the number of measured rows of each stage; `left`, the number of rows that were not measured; and
        `failed_checks`, one line for each failed check. After a failed check no other stage runs.

    Raises:
        InputError: rows of another GPU or version, or as `check_settings`.
    """
    if settings.stages == ("report",):  # a report can be written on any machine
        log0(write_report(folder))
        return {"rows": {}, "left": {}, "failed_checks": []}
    check_settings(settings)
    require_same_identity(folder, settings.device)
    if torch.device(settings.device).type == "cuda":
        torch.cuda.set_device(torch.device(settings.device).index or 0)
    result: dict[str, Any] = {"rows": {}, "left": {}, "failed_checks": []}
    for stage in (stage for stage in STAGES if stage in settings.stages):
        if stage == "report":
            log0(write_report(folder))
            continue
        limit = 0.0 if stage == "check" else settings.row_seconds
        rows = RUNNERS[stage](settings, Rows(folder, stage, settings.device, settings.minutes, limit))
        left = sum("not_measured" in row for row in rows)
        result["rows"][stage], result["left"][stage] = len(rows) - left, left
        log0(f"{stage}: {len(rows) - left} rows are measured, {left} are not")
        if stage == "check" and (failed := failed_checks(rows)):
            write_report(folder)
            return {**result, "failed_checks": failed}
    return result
