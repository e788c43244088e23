"""Pictures of a study: the accuracy by learning rate of every arm, and the differences to the baseline."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from ...inspection.colours import BLUE, VERMILION
from ...inspection.saving import save_figure
from .report import ENDPOINTS, ArmSummary, StudySummary

__all__ = ["plot_differences", "plot_rates"]

COLUMNS = 4  # panels per row


def plot_rates(summary: StudySummary, path: Path) -> None:
    """Plot the validation accuracy by learning rate, with one panel per arm and one dot per run.

    Args:
        summary: the study; it has at least one run.
        path: PNG file to write.
    """
    lines = -(-len(summary.arms) // COLUMNS)
    columns = min(COLUMNS, len(summary.arms))
    figure = Figure(figsize=(0.8 + 2.6 * columns, 1.3 + 2.3 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis, arm in zip(axes.flat, summary.arms, strict=False):
        _draw_rates(axis, arm, summary)
    for axis in axes.flat[len(summary.arms) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(summary.arms) - columns) : len(summary.arms)]:
        axis.tick_params(labelbottom=True)  # also where the panel below is empty
    rates = sorted({row.rate for row in summary.tuned})
    shown = rates if len(rates) <= 6 else rates[:: -(-len(rates) // 6)]
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_xticks(shown, [f"{rate:g}" for rate in shown])
    axes[0, 0].xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axis in axes.flat:
        axis.tick_params(axis="x", labelsize=7, rotation=30)
    figure.supxlabel("Learning rate", fontsize=10)
    figure.supylabel("Validation accuracy (top-1)", fontsize=10)
    figure.suptitle(
        f"{summary.protocol.title}: choice of the learning rates (dots: runs, line: mean, orange line: chosen)",
        fontsize=10,
    )
    save_figure(figure, path)


def _draw_rates(axis: Axes, arm: ArmSummary, summary: StudySummary) -> None:
    rows = [row for row in summary.tuned if row.arm == arm.name and row.rate in arm.tuning.rates]
    rates = sorted({row.rate for row in rows})
    means = [statistics.mean(row.val_accuracy for row in rows if row.rate == rate) for rate in rates]
    if arm.tuning.best is not None:
        axis.axvline(arm.tuning.best, color=VERMILION, lw=1.5, alpha=0.7)
    axis.plot(rates, means, color=BLUE, lw=1)
    axis.scatter([row.rate for row in rows], [row.val_accuracy for row in rows], s=16, color=BLUE, alpha=0.7, lw=0)
    axis.set_title(arm.name, fontsize=9)
    axis.grid(alpha=0.3)


def plot_differences(summary: StudySummary, path: Path) -> None:
    """Plot the differences of all arms to the baseline: a dot per pair, the mean and its 95 % interval.

    Args:
        summary: the study.
        path: PNG file to write.
    """
    protocol = summary.protocol
    arms = [arm for arm in summary.arms if arm.name != protocol.baseline]
    figure = Figure(figsize=(8, 1.7 + 0.5 * len(arms)), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-protocol.margin, protocol.margin, color="0.9", lw=0, label=f"margin, ±{protocol.margin:g} points")
    axis.axvline(0, color="0.4", lw=1)
    for place, arm in enumerate(arms):
        label = "one pair of seeds" if place == 0 else None
        pairs = [place + 0.18] * len(arm.differences)
        axis.scatter(arm.differences, pairs, s=18, color=BLUE, alpha=0.5, lw=0, label=label)
        if arm.comparison:
            label = "mean and 95 % interval" if place == 0 else None
            found = arm.comparison
            axis.errorbar(
                found.difference, place - 0.12, xerr=found.half_interval, fmt="o", ms=5, color=VERMILION, capsize=4,
                label=label,
            )  # fmt: skip
    names = [f"{arm.name} ({arm.comparison.verdict if arm.comparison else 'undecided'})" for arm in arms]
    axis.set_yticks(range(len(arms)), names)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_xlabel(f"Difference to {protocol.baseline}: {ENDPOINTS[protocol.endpoint]}, in points")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(protocol.title, fontsize=11)
    save_figure(figure, path)
