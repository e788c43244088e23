"""Verdicts on paired differences over seeds: better, worse, equivalent within a margin, or undecided.

Each endpoint has a paired t-test for a difference, and two one-sided t-tests for equivalence. Both are corrected for
the number of endpoints.

    Two one-sided tests: `Schuirmann 1987` - https://doi.org/10.1007/BF01068419
    Correction: `Holm 1979` - https://www.jstor.org/stable/4615733
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.stats import ttest_1samp

from .results import mean_interval

__all__ = ["Comparison", "Verdict", "compare_endpoints", "difference_p", "equivalence_p", "holm"]

ALPHA = 0.05  # level of both families of tests

Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of two arms on one endpoint, paired by seed.

    Attributes:
        endpoint: name of the endpoint.
        difference: mean of the paired differences, in the unit of the endpoint; positive if the first arm is better.
        half_interval: half the width of the 95 % confidence interval of the difference (Student's t), not corrected.
        pairs: number of pairs.
        margin: margin of equivalence, in the unit of the endpoint.
        difference_p: p-value of the paired t-test (two-sided), corrected by Holm's method over the endpoints.
        equivalence_p: p-value of the two one-sided tests, corrected by Holm's method over the endpoints.
        verdict: equivalent if equivalence_p is below 0.05; otherwise better or worse if difference_p is; otherwise
            undecided. A difference that is significant and within the margin is thus called equivalent.
    """

    endpoint: str
    difference: float
    half_interval: float
    pairs: int
    margin: float
    difference_p: float
    equivalence_p: float
    verdict: Verdict

    def __str__(self) -> str:
        """Return the comparison in one line."""
        low, high = self.difference - self.half_interval, self.difference + self.half_interval
        words = f"equivalent within ±{self.margin:g}" if self.verdict == "equivalent" else self.verdict
        return (
            f"{self.endpoint}: {words}; difference {self.difference:+.4g} (95 % interval {low:+.4g} to {high:+.4g}, "
            f"n = {self.pairs}), p = {self.difference_p:.2g} for a difference and {self.equivalence_p:.2g} for "
            "equivalence, corrected by Holm's method"
        )


def compare_endpoints(
    endpoints: Mapping[str, Sequence[float]], margin: float | Mapping[str, float]
) -> list[Comparison]:
    """Compare two arms on several endpoints.

    Args:
        endpoints: name -> paired differences of the arms, one per seed, at least two; positive if the first is better.
        margin: margin of equivalence, for all endpoints or per endpoint.

    Returns:
        One comparison per endpoint, in their order.

    Raises:
        ValueError: fewer than two pairs, a difference that is not finite, or a margin that is not positive.
    """
    margins = {name: margin[name] if isinstance(margin, Mapping) else margin for name in endpoints}
    different = holm([difference_p(values) for values in endpoints.values()])
    equivalent = holm([equivalence_p(values, margins[name]) for name, values in endpoints.items()])
    comparisons = []
    for (name, values), p, q in zip(endpoints.items(), different, equivalent, strict=True):
        mean, half = mean_interval(values)
        assert half is not None  # there are two pairs or more
        comparisons.append(Comparison(name, mean, half, len(values), margins[name], p, q, _verdict(mean, p, q)))
    return comparisons


def _verdict(mean: float, difference_p: float, equivalence_p: float) -> Verdict:
    if equivalence_p < ALPHA:
        return "equivalent"
    if difference_p < ALPHA:
        return "better" if mean > 0 else "worse"
    return "undecided"


def difference_p(differences: Sequence[float]) -> float:
    """Return the p-value of the paired t-test, two-sided, of the null hypothesis that the mean difference is 0.

    Raises:
        ValueError: fewer than two differences, or one that is not finite.
    """
    return _t_test(differences, 0.0, "two-sided")


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """Return the p-value of the two one-sided t-tests (TOST).

    The null hypothesis is that the mean difference is at least `margin` away from 0. The p-value is below 0.05 exactly
    if the 90 % confidence interval lies within the margin.

    Raises:
        ValueError: fewer than two differences, one that is not finite, or a margin that is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin={margin} must be above 0")
    return max(_t_test(differences, -margin, "greater"), _t_test(differences, margin, "less"))


def _t_test(differences: Sequence[float], null: float, alternative: Literal["two-sided", "greater", "less"]) -> float:
    """Return the p-value of a t-test that the mean is `null`. Equal differences leave no doubt about their mean."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"differences={values.tolist()} must be two finite numbers or more")
    if np.ptp(values) <= 1e-9 * np.abs(values).max():  # without spread; scipy would divide by rounding errors
        holds = {"two-sided": values[0] == null, "greater": values[0] <= null, "less": values[0] >= null}
        return float(holds[alternative])
    return float(ttest_1samp(values, null, alternative=alternative).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several tests by Holm's method: the chance of any false rejection is below the level.

    Args:
        p_values: p-values of all tests of the family.

    Returns:
        The corrected p-values, in the same order.
    """
    p, count = np.asarray(p_values, dtype=np.float64), len(p_values)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(count)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * (count - np.arange(count))), 1.0)
    return corrected.tolist()
