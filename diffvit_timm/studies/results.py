"""Finished runs as a table and a picture: means over seeds, their spread, differential beside plain attention."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import t

from ..files import replace
from ..inspection.colours import ATTENTION

__all__ = ["Run", "Summary", "difference", "mean_interval", "plot_study", "summarise", "write_csv"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        setting: what was varied, in words.
        attn: 'diff', 'diff_v2' or 'plain'.
        seed: of the training.
        accuracy: on the test split.
        parameters: of the model.
        seconds: of the training.
    """

    setting: str
    attn: str
    seed: int
    accuracy: float
    parameters: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """The runs of one setting and attention.

    Attributes:
        setting, attn, parameters: as in `Run`.
        seeds: how many runs.
        mean: of their test accuracies.
        deviation: their sample standard deviation; None for a single run.
        seconds: mean of their seconds.
    """

    setting: str
    attn: str
    parameters: int
    seeds: int
    mean: float
    deviation: float | None
    seconds: float


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """A row a setting and attention, in the order of their first runs."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.setting, run.attn), []).append(run)
    return [
        Summary(
            setting, attn, group[0].parameters, len(group), statistics.mean(run.accuracy for run in group),
            statistics.stdev(run.accuracy for run in group) if len(group) > 1 else None,
            statistics.mean(run.seconds for run in group),
        )
        for (setting, attn), group in groups.items()
    ]  # fmt: skip


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval (Student's t); None of a single value."""
    n = len(values)
    half = t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else None
    return statistics.mean(values), half


def difference(runs: Sequence[Run], others: Sequence[Run]) -> tuple[float, float | None, int]:
    """How much more accurate runs are than others: mean over the seeds that both have, in pairs.

    Returns:
        The mean, half the width of its 95 % interval (Student's t; None for a single pair), and the number of pairs.

    Raises:
        ValueError: no seed has both.
    """
    theirs = {run.seed: run.accuracy for run in others}
    gains = [run.accuracy - theirs[run.seed] for run in runs if run.seed in theirs]
    if not gains:
        raise ValueError("no seed has a run of both")
    return *mean_interval(gains), len(gains)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """One line a run."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, [field.name for field in dataclasses.fields(Run)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(run) for run in runs)
    replace(path, lines.getvalue())


def plot_study(runs: Sequence[Run], path: Path, title: str) -> None:
    """A line a setting: each run a dot, and the mean of each attention a bar across.

    Args:
        runs: of one study.
        path: of the PNG.
        title: what was varied, on what.
    """
    settings = list(dict.fromkeys(run.setting for run in runs))
    kinds = [kind for kind in ATTENTION if any(run.attn == kind for run in runs)]
    figure = Figure(figsize=(8, 1.6 + 0.5 * len(settings)), layout="constrained")
    axis = figure.subplots()
    rows = summarise(runs)

    def height(of: Run | Summary) -> float:
        """That of its setting, where it is of one attention; else one beside the other."""
        own = sorted((row.attn for row in rows if row.setting == of.setting), key=kinds.index)
        return settings.index(of.setting) + (own.index(of.attn) - (len(own) - 1) / 2) * 0.22

    for kind in kinds:
        heights = [height(run) for run in runs if run.attn == kind]
        axis.scatter(
            [run.accuracy for run in runs if run.attn == kind], heights, s=22, color=ATTENTION[kind], alpha=0.6, lw=0
        )
        means = [row for row in rows if row.attn == kind]
        axis.plot(
            [row.mean for row in means],
            [height(row) for row in means],
            "|", color=ATTENTION[kind], markersize=14, markeredgewidth=2.5, label=f"{kind} (bar: mean)",
        )  # fmt: skip
    axis.set_yticks(range(len(settings)), settings)
    axis.set_ylim(len(settings) - 0.5, -0.5)
    axis.set_xlabel("Test accuracy (top-1), a dot a seed")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axis.grid(axis="x", alpha=0.3)
    figure.suptitle(title, wrap=True)
    axis.legend(loc="best")
    figure.savefig(path, dpi=120)
