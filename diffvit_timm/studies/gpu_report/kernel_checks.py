"""Checks of the kernels in 16 bits: output and gradients against a float64 formula on the same device.

The error of explicit maps in the same precision gives the bound, because it shows how exact the precision allows the
result to be.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...layers.functional import differential_attention
from ...layers.kernels.layout import BranchDims
from ...layers.kernels.operator import has_kernel
from .inputs import DTYPES, Heads, make_heads, widths_text
from .kernel import formula, interprets_kernels, our_attention

__all__ = ["FACTOR", "Case", "cases", "check_case"]

FACTOR = 2.0  # on the error of explicit maps
SUM_FACTOR = 4.0  # the same for a sum: four standard deviations
# Absolute error of an element that always passes, in units of eps. With one token the gradients of q and k are 0: the
# difference of two equal numbers, which the kernels round.
FLOOR, FLOOR_OF_ONE_TOKEN = 1 / 64, 1.0
# (width of a head, branch_dims)
WIDTHS: tuple[tuple[int, BranchDims], ...] = (
    (64, (48, 16)), (64, None), (64, (32, 32)), (128, (96, 32)), (128, None)
)  # fmt: skip
BATCH, HEADS = 2, 3
NO_BF16 = "Triton's interpreter does not compute products in bf16"
NAMES = ("output", "gradient of q", "gradient of k", "gradient of v", "gradient of lambda")


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the kernels: precision, widths, tokens, kind of lambda, and whether the heads are normalised."""

    precision: str
    width: int
    branch_dims: BranchDims
    tokens: int
    per_token: bool
    norm: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that identify the row of this case."""
        return {
            "check": "kernel", "precision": self.precision, "heads": widths_text(self.branch_dims, self.width),
            "tokens": self.tokens, "lambda": "per token" if self.per_token else "scalar", "norm": self.norm,
        }  # fmt: skip

    @property
    def title(self) -> str:
        """The case in words."""
        kind = "one lambda per token" if self.per_token else "one lambda"
        norm = ", with the head norm" if self.norm else ""
        return f"{self.precision}, {widths_text(self.branch_dims, self.width)}, N = {self.tokens}, {kind}{norm}"


def cases(precisions: Sequence[str], tokens: Sequence[int]) -> list[Case]:
    """Return all cases, in the order of the precisions and then of the numbers of tokens."""
    return [
        Case(precision, *widths, count, per_token, norm)
        for precision, count, widths, norm, per_token in itertools.product(
            precisions, tokens, WIDTHS, (False, True), (False, True)
        )
        if not (norm and per_token)
    ]


def check_case(case: Case, device: str) -> dict[str, Any]:
    """Check one case.

    Returns:
        `passed`; `errors`, the norm of the error of each result relative to that of the result, or to 0.01 if that is
        larger; `bounds` on them; and `failures`, a sentence for each error above its bound.
    """
    if device == "cpu" and case.precision == "bf16" and interprets_kernels():
        return {"not_measured": NO_BF16}
    with torch.cuda.device(device) if torch.device(device).type == "cuda" else contextlib.nullcontext():
        heads = make_heads(
            BATCH, HEADS, case.tokens, case.width, case.branch_dims is None, case.per_token, DTYPES[case.precision],
            device
        )  # fmt: skip
        return _compare(case, heads)


def _compare(case: Case, heads: Heads) -> dict[str, Any]:
    scale = (case.width if case.branch_dims is None else case.width / 2) ** -0.5
    weight = torch.linspace(0.5, 1.5, case.width, device=heads.q.device).to(heads.q.dtype) if case.norm else None
    wanted, allowed = _exact_and_bounds(case, heads, scale, weight)
    if weight is None:
        out = our_attention(*heads.leaves, case.branch_dims, scale)
        ours = [out.detach(), *torch.autograd.grad(out, heads.leaves, heads.grad)]
    else:
        with torch.no_grad():
            ours = [our_attention(*heads.leaves, case.branch_dims, scale, weight)]
    errors, bounds, failures = {}, {}, []
    for name, own, exact, distance in zip(NAMES, ours, wanted, allowed, strict=False):
        size = max(exact.norm().item(), 1e-2)
        error, bound = _distance(own, exact) / size, distance / size
        errors[name], bounds[name] = error, bound
        if not error <= bound:  # also if the error is NaN
            failures.append(f"{case.title}: the error of the {name} is {error:.2g}, above {bound:.2g}")
    missing = heads.q.device.type == "cuda" and not has_kernel(heads.q, heads.v, case.branch_dims)
    note = {"has_kernel": False} if missing else {}
    if heads.q.device.type == "cpu" and interprets_kernels():
        note["interpreter"] = True
    return {"passed": not failures, "errors": errors, "bounds": bounds, "failures": failures, **note}


def _distance(actual: Tensor, exact: Tensor) -> float:
    return (actual.double() - exact).norm().item()


def _exact_and_bounds(
    case: Case, heads: Heads, scale: float, weight: Tensor | None
) -> tuple[list[Tensor], list[float]]:
    """Return the output and the gradients in float64, and the largest allowed norm of the error of each."""
    B, H, N, _ = heads.v.shape
    per_token = dataclasses.replace(heads, lam=heads.lam.detach().expand(B, H, N, 1))
    half, double = per_token.copied_leaves(heads.q.dtype), per_token.copied_leaves(torch.float64)
    explicit = [differential_attention(*half, case.branch_dims, scale, norm_weight=weight, fused=False)]
    exact = [formula(*double, case.branch_dims, scale, None if weight is None else weight.double())]
    if weight is None:
        explicit += torch.autograd.grad(explicit[0], half, heads.grad)
        exact += torch.autograd.grad(exact[0], double, heads.grad.double())
    distances = [_distance(t.detach(), e.detach()) for t, e in zip(explicit, exact, strict=True)]
    eps = torch.finfo(heads.q.dtype).eps
    floor = (FLOOR if N > 1 else FLOOR_OF_ONE_TOKEN) * eps
    allowed = [FACTOR * d + floor * e.numel() ** 0.5 for d, e in zip(distances, exact, strict=True)]
    exact = [e.detach() for e in exact]
    if weight is None and not case.per_token:
        # The gradient of a scalar is a sum whose terms cancel. Their rounding errors add up like a random walk, and a
        # sum in 16 bits is rounded once more. The sum of explicit maps would be no bound: it can be exact by chance.
        exact[-1] = exact[-1].sum()
        allowed[-1] = SUM_FACTOR * distances[-1] + eps * exact[-1].abs().item()
    return exact, allowed
