"""Table and figure of the runs of a study: mean and spread over seeds, differential beside plain attention."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import t

from .. import files
from ..inspection.colours import ATTENTION
from ..inspection.saving import save_figure

__all__ = [
    "Run",
    "Summary",
    "difference",
    "mean_interval",
    "paired_differences",
    "plot_study",
    "summarise",
    "write_csv",
]


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        setting: name of the setting that the study varies.
        attn: 'diff', 'diff_v2' or 'plain'.
        seed: seed of the training.
        accuracy: top-1 accuracy on the test split, in [0, 1].
        parameters: number of parameters of the model.
        seconds: duration of the training.
    """

    setting: str
    attn: str
    seed: int
    accuracy: float
    parameters: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Summary of all runs with the same setting and attention.

    Attributes:
        setting, attn, parameters: as in `Run`.
        seeds: number of runs.
        mean: mean of the test accuracies.
        deviation: sample standard deviation of the test accuracies; None for a single run.
        seconds: mean duration of a training.
    """

    setting: str
    attn: str
    parameters: int
    seeds: int
    mean: float
    deviation: float | None
    seconds: float


def summarise(runs: Sequence[Run]) -> list[Summary]:
    """Return one summary per setting and attention, in the order of their first runs."""
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
    """Return the mean and half the width of its 95 % confidence interval (Student's t), None for a single value."""
    n = len(values)
    half = t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5 if n > 1 else None
    return statistics.mean(values), half


def paired_differences(runs: Sequence[Run], others: Sequence[Run]) -> list[float]:
    """Return accuracy(runs) - accuracy(others) for each seed that both groups have, in the order of `runs`.

    Raises:
        ValueError: the groups have no seed in common.
    """
    accuracies = {run.seed: run.accuracy for run in others}
    differences = [run.accuracy - accuracies[run.seed] for run in runs if run.seed in accuracies]
    if not differences:
        raise ValueError("the two groups of runs have no seed in common")
    return differences


def difference(runs: Sequence[Run], others: Sequence[Run]) -> tuple[float, float | None, int]:
    """Compare the accuracy of two groups of runs, paired by seed. Seeds that only one group has are left out.

    Args:
        runs: the runs to compare.
        others: the runs to compare them with.

    Returns:
        Mean of accuracy(runs) - accuracy(others) over the pairs, half the width of its 95 % confidence interval
        (Student's t; None for a single pair), and the number of pairs.

    Raises:
        ValueError: the groups have no seed in common.
    """
    differences = paired_differences(runs, others)
    return *mean_interval(differences), len(differences)


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write a CSV file with one row per run and a header."""
    columns = [field.name for field in dataclasses.fields(Run)]
    files.write_csv(path, columns, (dataclasses.asdict(run) for run in runs))


def plot_study(runs: Sequence[Run], path: Path, title: str) -> None:
    """Plot the test accuracies with one line per setting: a dot per run, and a bar for the mean of each attention.

    Args:
        runs: all runs of a study.
        path: PNG file to write.
        title: title of the figure.
    """
    settings = list(dict.fromkeys(run.setting for run in runs))
    kinds = [kind for kind in ATTENTION if any(run.attn == kind for run in runs)]
    figure = Figure(figsize=(8, 1.6 + 0.5 * len(settings)), layout="constrained")
    axis = figure.subplots()
    rows = summarise(runs)

    def height(row: Run | Summary) -> float:
        """Return the y position of the setting, with an offset if the setting has several kinds of attention."""
        own = sorted((other.attn for other in rows if other.setting == row.setting), key=kinds.index)
        return settings.index(row.setting) + (own.index(row.attn) - (len(own) - 1) / 2) * 0.22

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
    axis.set_xlabel("Test accuracy (top-1), one dot per seed")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axis.grid(axis="x", alpha=0.3)
    figure.suptitle(title, wrap=True)
    axis.legend(loc="best")
    save_figure(figure, path)
