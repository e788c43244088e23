"""The rows of a stage, in one JSON file that is written as soon as a row is measured.

A row has `settings`, which identify it, and what was measured. A row with `not_measured` holds the reason instead, and
a later call measures it again.
"""

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import disk_errors, read_json, write_atomically
from .hardware import DECISIVE, identity
from .settings import STAGES

__all__ = ["FAILED", "TIME_LIMIT", "Rows", "read_rows", "require_same_identity"]

TIME_LIMIT = "time limit"
FAILED = "failed"
ADVICE = "remove it, or choose another folder"


def stage_file(folder: Path, stage: str) -> Path:
    """Return the path of the rows of a stage."""
    return folder / f"{stage}.json"


def read_rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    """Return the rows of a stage; an empty list if it was not run."""
    path = stage_file(folder, stage)
    return read_json(path, ADVICE).get("rows", []) if path.exists() else []


def require_same_identity(folder: Path, device: str) -> None:
    """Check that the rows in a folder are of this GPU and of these versions.

    Raises:
        InputError: they are not, or a file is damaged.
    """
    own = identity(device)
    for stage in STAGES:
        path = stage_file(folder, stage)
        other = read_json(path, ADVICE).get("identity", {}) if path.exists() else own
        different = [name for name in DECISIVE if other.get(name) != own[name]]
        if different:
            theirs = ", ".join(f"{name} {other.get(name)}" for name in different)
            ours = ", ".join(f"{name} {own[name]}" for name in different)
            raise InputError(f"`output={folder}` holds rows of {theirs}, but this is {ours}: choose another folder")


class Rows:
    """The rows of a stage, old and new, with the time limit of the stage.

    Args:
        folder: folder of the report.
        stage: name of the stage.
        device: device that is measured.
        minutes: time limit of the stage.
        row_seconds: time limit of a group. Rows with a shorter one are measured again.
    """

    def __init__(self, folder: Path, stage: str, device: str, minutes: float, row_seconds: float = 0.0) -> None:
        self.row_seconds = row_seconds
        self.path = stage_file(folder, stage)
        self.stage, self.device, self.identity = stage, device, identity(device)
        self.rows = read_rows(folder, stage)
        self.end = time.monotonic() + 60 * minutes

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def missing(self, settings: Mapping[str, Any]) -> bool:
        """Return whether a row still has to be measured. Without time, it is recorded as not measured."""
        row = next((row for row in self.rows if row["settings"] == dict(settings)), None)
        if row is not None and is_finished(row) and row["row_seconds"] >= self.row_seconds:
            return False
        if not self.seconds_left:
            self.add(settings, not_measured=TIME_LIMIT)
            return False
        return True

    def add(self, settings: Mapping[str, Any], **measured: Any) -> None:
        """Add a row, in place of an older one with the same settings, and write the file."""
        row = {"settings": dict(settings), **measured, "row_seconds": self.row_seconds, "identity": self.identity}
        self.rows = [other for other in self.rows if other["settings"] != row["settings"]] + [row]
        content = {"stage": self.stage, "identity": self.identity, "rows": self.rows}
        with disk_errors("the report", self.path.parent, "start again: finished rows are kept"):
            write_atomically(self.path, json.dumps(content, indent=1) + "\n")

    def chosen(self, listed: Collection[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows with the listed settings."""
        wanted = [dict(settings) for settings in listed]
        return [row for row in self.rows if row["settings"] in wanted]


def is_finished(row: Mapping[str, Any]) -> bool:
    """Return whether a row needs no further measurement: it has results, no check failed, and no candidate is left."""
    left = any(result.get("unavailable") == TIME_LIMIT for result in row.get("results", {}).values())
    return not left and "not_measured" not in row and row.get("passed", True)
