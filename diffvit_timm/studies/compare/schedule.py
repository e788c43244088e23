"""Which runs a study still needs: the grids of learning rates, and the order that goes round the arms."""

import dataclasses
import statistics
from collections.abc import Collection

from .ledger import Ledger
from .protocol import Arm, Planned, Protocol

__all__ = ["MAX_EXTENSIONS", "Tuning", "plan_tests", "plan_tuning", "tuning"]

MAX_EXTENSIONS = 4  # rates that are added to the start grid of an arm


@dataclasses.dataclass(frozen=True)
class Tuning:
    """State of the choice of an arm's learning rate.

    Attributes:
        rates: the rates so far, in ascending order.
        best: the chosen rate; None while runs are missing.
        at_edge: whether the chosen rate is still at an end of the grid, after MAX_EXTENSIONS extensions.
    """

    rates: tuple[float, ...]
    best: float | None
    at_edge: bool = False


def tuning(protocol: Protocol, ledger: Ledger, arm: Arm) -> Tuning:
    """Return how far the choice of an arm's learning rate is.

    The best rate has the highest mean validation accuracy over the tuning seeds; of equal ones the lowest. If it is at
    an end of the grid, the grid is extended there by the ratio of the two last rates.
    """
    rates = list(arm.rates)
    for extensions in range(MAX_EXTENSIONS + 1):
        scores = [_score(protocol, ledger, arm.name, rate) for rate in rates]
        known = [score for score in scores if score is not None]
        if len(known) < len(rates):
            return Tuning(tuple(rates), None)
        place = known.index(max(known))
        at_edge = place in (0, len(rates) - 1)
        if not at_edge or extensions == MAX_EXTENSIONS:
            break
        if place == 0:
            rates.insert(0, _rounded(rates[0] * rates[0] / rates[1]))
        else:
            rates.append(_rounded(rates[-1] * rates[-1] / rates[-2]))
    return Tuning(tuple(rates), rates[place], at_edge)


def _score(protocol: Protocol, ledger: Ledger, arm: str, rate: float) -> float | None:
    """Return the mean validation accuracy over the tuning seeds; None if one of them is missing."""
    rows = [ledger.finished.get(Planned(arm, "tune", rate, seed)) for seed in protocol.tuning_seeds]
    if None in rows:
        return None
    # Rounded, so that equal means of other accuracies are equal.
    return round(statistics.mean(row.val_accuracy for row in rows if row), 9)


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")


def plan_tuning(protocol: Protocol, ledger: Ledger, arms: Collection[str]) -> list[Planned]:
    """Return the missing runs that choose the learning rates, one arm after the other for each seed and rate."""
    grids = {arm.name: tuning(protocol, ledger, arm).rates for arm in protocol.arms if arm.name in arms}
    runs = [
        (place, number, Planned(name, "tune", rate, seed))
        for name, rates in grids.items()
        for place, seed in enumerate(protocol.tuning_seeds)
        for number, rate in enumerate(rates)
    ]
    return [run for *_, run in sorted(runs, key=lambda entry: entry[:2]) if run not in ledger.finished]


def plan_tests(protocol: Protocol, ledger: Ledger, arms: Collection[str]) -> list[Planned]:
    """Return the missing runs at the best rates, one arm after the other for each seed. Untuned arms have none."""
    best = {arm.name: tuning(protocol, ledger, arm).best for arm in protocol.arms if arm.name in arms}
    runs = [
        Planned(name, "test", rate, seed)
        for seed in protocol.test_seeds
        for name, rate in best.items()
        if rate is not None
    ]
    return [run for run in runs if run not in ledger.finished]
