"""The ledger of a study: a CSV file with one row per finished run, by which no run is done twice."""

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...console import log0
from ...errors import InputError
from ...files import write_csv
from .protocol import Planned, Protocol

__all__ = ["Ledger", "Row"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A finished run.

    Attributes:
        arm, part, rate, seed: as in `Planned`.
        val_accuracy: best accuracy on the validation images; 0 if the run diverged.
        endpoint: the endpoint of the study, in [0, 1]; None for a run that chooses a learning rate.
        test_accuracy, test_loss: accuracy and loss on the test images; None likewise, and if the run diverged.
        calibration_error: expected calibration error on the test images; None likewise.
        diverged: whether the loss became infinite or NaN.
        parameters, flops: size of the network, and FLOPs of a forward pass for one image; None if the run diverged.
        updates: number of updates.
        seconds: duration of the training, without the test.
        hardware: processor or GPU, and the number of threads.
        versions: versions of the package, timm and torch.
        images: fingerprint of the validation and test images.
        checksum: checksum of the options, of `Protocol.checksum`.
    """

    arm: str
    part: str
    rate: float
    seed: int
    val_accuracy: float
    endpoint: float | None
    test_accuracy: float | None
    test_loss: float | None
    calibration_error: float | None
    diverged: bool
    parameters: int | None
    flops: int | None
    updates: int | None
    seconds: float
    hardware: str
    versions: str
    images: str
    checksum: str

    @property
    def planned(self) -> Planned:
        """The training that this row finishes."""
        return Planned(self.arm, self.part, self.rate, self.seed)  # type: ignore[arg-type]


class Ledger:
    """Reads and writes the ledger of a study.

    Args:
        path: CSV file; it need not exist.
        protocol: the study; rows of other options are kept in the file, but not used.

    Raises:
        InputError: a damaged file.
    """

    def __init__(self, path: Path, protocol: Protocol) -> None:
        self.path = path
        self.rows = _read(path) if path.exists() else []
        self.finished: dict[Planned, Row] = {}
        names = {arm.name for arm in protocol.arms}
        foreign = 0
        for row in self.rows:
            if row.arm in names and protocol.checksum(row.planned) == row.checksum:
                self.finished.setdefault(row.planned, row)
            else:
                foreign += 1
        if foreign:
            log0(f"{path}: {foreign} of {len(self.rows)} runs have other options than this protocol and are not used")
        self._check_images()

    def add(self, row: Row) -> None:
        """Add a finished run, and write the file atomically.

        Raises:
            InputError: the validation or test images differ from those of the other runs.
        """
        self._check_images(row)
        self.finished[row.planned] = row
        self.rows.append(row)
        write_csv(self.path, _COLUMNS, ({k: _text(v) for k, v in vars(r).items()} for r in self.rows))

    def _check_images(self, *more: Row) -> None:
        if len({row.images for row in (*self.finished.values(), *more) if row.images}) > 1:
            raise InputError(
                f"{self.path} has runs on other validation or test images than `dataset` has now: use the images of "
                "the first runs, or another `output`"
            )

    def of(self, arm: str, part: str) -> list[Row]:
        """Return the rows of an arm that this protocol uses."""
        return [row for row in self.finished.values() if (row.arm, row.part) == (arm, part)]


_COLUMNS = [field.name for field in dataclasses.fields(Row)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _read(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames != _COLUMNS:
                raise ValueError(f"its columns are not {', '.join(_COLUMNS)}")
            return [_parse(values, line) for line, values in enumerate(reader, start=2)]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it from a copy, or use another `output`") from error


def _parse(values: Mapping[str, str], line: int) -> Row:
    try:
        if None in values or None in values.values():
            raise ValueError("it has another number of cells")
        number = {name: float(values[name]) if values[name] else None for name in _FLOATS}
        whole = {name: int(values[name]) if values[name] else None for name in _INTEGERS}
        missing = [k for k, v in {**number, **whole}.items() if v is None and k in _REQUIRED]
        if missing or values["diverged"] not in ("yes", "no") or values["part"] not in ("tune", "test"):
            raise ValueError(f"{missing[0] if missing else 'diverged or part'} has no valid value")
        if values["part"] == "test" and number["endpoint"] is None:
            raise ValueError("a test run has no endpoint")
        for name, value in number.items():
            if value is not None and not (0 <= value <= LARGEST.get(name, math.inf) and math.isfinite(value)):
                raise ValueError(f"{name}={values[name]} is not possible")
        if not number["rate"] or (whole["seed"] or 0) < 0:
            raise ValueError("the rate or the seed is not possible")
    except ValueError as error:
        raise ValueError(f"line {line}: {error}") from error
    return Row(**{**values, **number, **whole, "diverged": values["diverged"] == "yes"})  # type: ignore[arg-type]


LARGEST = dict.fromkeys(("val_accuracy", "endpoint", "test_accuracy", "calibration_error"), 1.0)
_FLOATS = ("rate", "val_accuracy", "endpoint", "test_accuracy", "test_loss", "calibration_error", "seconds")
_INTEGERS = ("seed", "parameters", "flops", "updates")
_REQUIRED = ("rate", "val_accuracy", "seconds", "seed")
