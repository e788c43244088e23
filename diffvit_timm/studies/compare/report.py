"""The report of a study: a table with one row per arm, and one sentence per arm that says what was found."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from ..verdicts import Comparison, compare_endpoints
from .ledger import Ledger, Row
from .protocol import Protocol
from .schedule import Tuning, plan_tests, plan_tuning, tuning

__all__ = ["ArmSummary", "StudySummary", "report_text", "summarise_study", "summary_json", "verdict_sentence"]

ENDPOINTS = {"test_accuracy": "test accuracy", "corruption_accuracy": "mean accuracy on corrupted test images"}


@dataclasses.dataclass(frozen=True)
class ArmSummary:
    """Results of one arm of a study.

    Attributes:
        name: name of the arm.
        tuning: the grid and the chosen learning rate.
        rows: test runs at the chosen rate, in the order of the seeds.
        differences: differences of the endpoint to the baseline in points, one per seed that both have.
        comparison: tests of these differences, corrected over the arms; None for the baseline and below two pairs.
        loss_difference: mean difference of the test loss to the baseline; None without pairs.
    """

    name: str
    tuning: Tuning
    rows: list[Row]
    differences: list[float]
    comparison: Comparison | None
    loss_difference: float | None

    @property
    def mean(self) -> float | None:
        """Mean of the endpoint, in [0, 1]."""
        return statistics.mean(self.endpoints) if self.rows else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the endpoint over the seeds."""
        return statistics.stdev(self.endpoints) if len(self.rows) > 1 else None

    @property
    def endpoints(self) -> list[float]:
        """The endpoint of every test run."""
        return [row.endpoint for row in self.rows if row.endpoint is not None]

    @property
    def size(self) -> tuple[int, int] | None:
        """Parameters of the network, and FLOPs of a forward pass; None if no test run has finished."""
        return next(((row.parameters, row.flops) for row in self.rows if row.parameters and row.flops), None)

    @property
    def diverged(self) -> int:
        """Number of test runs that diverged."""
        return sum(row.diverged for row in self.rows)


@dataclasses.dataclass(frozen=True)
class StudySummary:
    """Results of a study so far.

    Attributes:
        protocol: the study.
        arms: one summary per arm.
        tuned: all runs that chose learning rates.
        missing: numbers of missing runs of both parts; more may follow if a grid is extended or a rate is chosen.
    """

    protocol: Protocol
    arms: list[ArmSummary]
    tuned: list[Row]
    missing: dict[str, int]


def summarise_study(protocol: Protocol, ledger: Ledger) -> StudySummary:
    """Compare every arm with the baseline, in pairs of equal seed."""
    names = [arm.name for arm in protocol.arms]
    tunings = {arm.name: tuning(protocol, ledger, arm) for arm in protocol.arms}
    rows = {name: _test_rows(protocol, ledger, name, tunings[name]) for name in names}
    base = {row.seed: row for row in rows[protocol.baseline]}
    pairs = {
        name: [(row, base[row.seed]) for row in rows[name] if row.seed in base]
        for name in names if name != protocol.baseline
    }  # fmt: skip
    differences = {name: [_points(row) - _points(other) for row, other in own] for name, own in pairs.items()}
    # Two arms that both diverged are not equal; nothing is known about them.
    tested = {
        name: differences[name] for name, own in pairs.items()
        if len(own) > 1 and not all(row.diverged and other.diverged for row, other in own)
    }  # fmt: skip
    comparisons = {found.endpoint: found for found in compare_endpoints(tested, protocol.margin)}
    arms = [
        ArmSummary(
            name, tunings[name], rows[name], differences.get(name, []), comparisons.get(name),
            _loss_difference(pairs.get(name, [])),
        )
        for name in names
    ]  # fmt: skip
    missing = {
        "tune": len(plan_tuning(protocol, ledger, names)),
        "test": len(plan_tests(protocol, ledger, names))
        + len(protocol.test_seeds) * sum(tuned.best is None for tuned in tunings.values()),
    }
    tuned = [
        row for name in names for row in ledger.of(name, "tune")
        if row.seed in protocol.tuning_seeds and row.rate in tunings[name].rates
    ]  # fmt: skip
    return StudySummary(protocol, arms, tuned, missing)


def _test_rows(protocol: Protocol, ledger: Ledger, name: str, tuned: Tuning) -> list[Row]:
    rows = {row.seed: row for row in ledger.of(name, "test") if row.rate == tuned.best}
    return [rows[seed] for seed in protocol.test_seeds if seed in rows]


def _points(row: Row) -> float:
    assert row.endpoint is not None  # every test run has one
    return 100 * row.endpoint


def _loss_difference(pairs: Sequence[tuple[Row, Row]]) -> float | None:
    losses = [a.test_loss - b.test_loss for a, b in pairs if a.test_loss is not None and b.test_loss is not None]
    return statistics.mean(losses) if losses else None


def report_text(summary: StudySummary) -> str:
    """Return the report in Markdown."""
    protocol = summary.protocol
    lines = [f"# {protocol.title}", "", *_introduction(summary), "", "## Result", "", *_sentences(summary), ""]
    lines += [*_table(summary), "", *_notes(summary), "", "![Differences to the baseline](differences.png)", ""]
    lines += ["## Learning rates", "", *_tuning_table(summary), "", "![Accuracy by learning rate](rates.png)", ""]
    lines += ["## Hardware and versions", "", *_hardware(summary)]
    return "\n".join(lines) + "\n"


def _introduction(summary: StudySummary) -> list[str]:
    protocol = summary.protocol
    tuned, tested = len(summary.tuned), sum(len(arm.rows) for arm in summary.arms)
    lines = [
        f"The endpoint is the {ENDPOINTS[protocol.endpoint]}. Every arm is trained at its own learning rate, which has "
        f"the highest mean validation accuracy over the tuning seeds ({_listed(protocol.tuning_seeds)}). The arms are "
        f"compared with {protocol.baseline} over the test seeds ({_listed(protocol.test_seeds)}), in pairs of equal "
        f"seed. {tuned} runs chose the rates, and {tested} runs test the arms."
    ]
    if any(summary.missing.values()):
        lines.append(
            f"\n**The study is not complete:** {summary.missing['tune']} runs that choose rates and "
            f"{summary.missing['test']} test runs are missing."
        )
    return lines


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _sentences(summary: StudySummary) -> list[str]:
    return [f"- {verdict_sentence(arm, summary)}" for arm in _others(summary)]


def _others(summary: StudySummary) -> list[ArmSummary]:
    return [arm for arm in summary.arms if arm.name != summary.protocol.baseline]


def verdict_sentence(arm: ArmSummary, summary: StudySummary) -> str:
    """Return what was found about an arm, in one sentence; with `so far` if runs are missing."""
    sentence = _found_sentence(arm, summary.protocol)
    return f"So far: {sentence}" if any(summary.missing.values()) else sentence


def _found_sentence(arm: ArmSummary, protocol: Protocol) -> str:
    found, baseline = arm.comparison, protocol.baseline
    if found is None:
        return f"**{arm.name}** and {baseline}: undecided with n = {len(arm.differences)}."
    verdict = {
        "better": f"is better than {baseline}",
        "worse": f"is worse than {baseline}",
        "equivalent": f"is equal to {baseline} within {protocol.margin:g} points",
        "undecided": f"and {baseline}: undecided with n = {found.pairs}",
    }[found.verdict]
    numbers = f"{found.difference:+.2f} points, 95 % interval {_interval(found)}"
    n = "" if found.verdict == "undecided" else f", n = {found.pairs}"
    return f"**{arm.name}** {verdict} ({numbers}{n})."


def _interval(found: Comparison) -> str:
    return f"{found.difference - found.half_interval:+.2f} to {found.difference + found.half_interval:+.2f}"


def _table(summary: StudySummary) -> list[str]:
    lines = [
        f"| arm | learning rate | n | {ENDPOINTS[summary.protocol.endpoint]} | difference in points (95 % interval) | "
        "p (difference) | p (equivalence) | verdict | test loss | calibration error | parameters | MFLOPs | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return lines + [_line(arm, summary.protocol.baseline) for arm in summary.arms]


def _line(arm: ArmSummary, baseline: str) -> str:
    found = arm.comparison
    accuracy = "" if arm.mean is None else f"{arm.mean:.2%}"
    if arm.deviation is not None:
        accuracy = f"{100 * (arm.mean or 0):.2f} ± {100 * arm.deviation:.2f} %"
    cells = [arm.name, "" if arm.tuning.best is None else f"{arm.tuning.best:g}", str(len(arm.rows)), accuracy]
    if found:
        cells += [f"{found.difference:+.2f} ({_interval(found)})", f"{found.difference_p:.2g}"]
        cells += [f"{found.equivalence_p:.2g}", found.verdict]
    else:
        cells += ["", "", "", "baseline" if arm.name == baseline else "undecided"]
    cells += [_mean([row.test_loss for row in arm.rows]), _mean([row.calibration_error for row in arm.rows])]
    cells += [f"{arm.size[0]:,}", f"{arm.size[1] / 1e6:.1f}"] if arm.size else ["", ""]
    cells += [f"{statistics.mean(row.seconds for row in arm.rows):.0f}" if arm.rows else ""]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3f}" if known else ""


def _notes(summary: StudySummary) -> list[str]:
    lines = [
        "± is the standard deviation over the seeds. p (difference) is from the paired t-test, and p (equivalence) "
        f"from two one-sided tests within ±{summary.protocol.margin:g} points. Both are corrected by Holm's method "
        "over the arms of this study; the intervals are not corrected. A difference that is significant and within the "
        "margin is called equivalent. The test loss in nats and the expected calibration error on the test images (15 "
        "bins) are secondary endpoints, without a test. MFLOPs are those of a forward pass for one image, in millions; "
        "a multiplication and an addition count as two. Seconds are the mean duration of a training."
    ]
    for arm in summary.arms:
        if arm.diverged:
            lines.append(f"\n{arm.diverged} test runs of {arm.name} diverged and count as an accuracy of 0.")
        if arm.tuning.at_edge:
            lines.append(f"\nThe best rate of {arm.name} is at the edge of its grid, which was not extended further.")
    return lines


def _tuning_table(summary: StudySummary) -> list[str]:
    lines = ["| arm | validation accuracy by learning rate (mean over the tuning seeds) |", "|---|---|"]
    for arm in summary.arms:
        cells = []
        for rate in arm.tuning.rates:
            scores = [row.val_accuracy for row in summary.tuned if (row.arm, row.rate) == (arm.name, rate)]
            text = f"{rate:g}: {statistics.mean(scores):.2%}" if scores else f"{rate:g}: missing"
            cells.append(f"**{text}**" if rate == arm.tuning.best else text)
        lines.append(f"| {arm.name.replace('|', '/')} | {', '.join(cells)} |")
    return lines


def _hardware(summary: StudySummary) -> list[str]:
    rows = [*summary.tuned, *(row for arm in summary.arms for row in arm.rows)]
    kinds = dict.fromkeys((row.hardware, row.versions) for row in rows)
    counts = {kind: sum((row.hardware, row.versions) == kind for row in rows) for kind in kinds}
    return [f"- {count} runs: {hardware}; {versions}" for (hardware, versions), count in counts.items()] or ["No run."]


def summary_json(summary: StudySummary) -> dict[str, Any]:
    """Return the summary as JSON writes it."""
    arms = {}
    for arm in summary.arms:
        found = dataclasses.asdict(arm.comparison) if arm.comparison else {}
        found.pop("endpoint", None)
        parameters, flops = arm.size or (None, None)
        arms[arm.name] = {
            "lr": arm.tuning.best, "at_edge": arm.tuning.at_edge, "rates": list(arm.tuning.rates), "n": len(arm.rows),
            "mean": arm.mean, "deviation": arm.deviation, "diverged": arm.diverged,
            "differences": arm.differences, "loss_difference": arm.loss_difference, "comparison": found or None,
            "parameters": parameters, "flops": flops,
            "sentence": "" if arm.name == summary.protocol.baseline else verdict_sentence(arm, summary),
        }  # fmt: skip
    protocol = summary.protocol
    return {
        "title": protocol.title, "baseline": protocol.baseline, "endpoint": protocol.endpoint,
        "margin": protocol.margin, "tuning_seeds": list(protocol.tuning_seeds),
        "test_seeds": list(protocol.test_seeds), "missing": summary.missing, "arms": arms,
    }  # fmt: skip
