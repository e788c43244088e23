"""Checks of the kernels in 16 bits: output and gradients against a float64 formula on the same device.

The error of explicit maps in the same precision gives the bound, because it shows how exact the precision allows the
result to be.
"""

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
from .kernel import formula, our_attention, uses_interpreter

__all__ = ["Case", "cases", "check_case"]

FACTOR = 2.0  # on the error of explicit maps
FLOOR = 1 / 64  # absolute error of an element that always passes, in units of eps: with one token q has no gradient
# (width of a head, branch_dims)
WIDTHS: tuple[tuple[int, BranchDims], ...] = (
    (64, (48, 16)), (64, None), (64, (32, 32)), (128, (96, 32)), (128, None)
)  # fmt: skip
BATCH, HEADS = 2, 3
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
        """What identifies the row of this case."""
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
    with torch.cuda.device(device) if torch.device(device).type == "cuda" else torch.device(device):
        heads = make_heads(
            BATCH, HEADS, case.tokens, case.width, case.branch_dims is None, case.per_token, DTYPES[case.precision],
            device
        )  # fmt: skip
        return _compare(case, heads)


def _compare(case: Case, heads: Heads) -> dict[str, Any]:
    scale = (case.width if case.branch_dims is None else case.width / 2) ** -0.5
    weight = torch.linspace(0.5, 1.5, case.width, device=heads.q.device).to(heads.q.dtype) if case.norm else None
    wanted, floors = _exact(case, heads, scale, weight)
    options = (case.branch_dims, scale)
    if weight is not None:
        with torch.no_grad():
            ours = [our_attention(*heads, *options, weight)]
            explicit = [differential_attention(*heads, *options, norm_weight=weight, fused=False)]
    else:
        ours = _with_gradients(our_attention(*heads, *options), heads)
        explicit = _with_gradients(differential_attention(*heads, *options, fused=False), heads)
    errors, bounds, failures = {}, {}, []
    for name, own, other, exact, floor in zip(NAMES, ours, explicit, wanted, floors, strict=False):
        size = max(exact.norm().item(), 1e-2)
        error, bound = _distance(own, exact) / size, (FACTOR * _distance(other, exact) + floor) / size
        errors[name], bounds[name] = error, bound
        if not error <= bound:  # also if the error is NaN
            failures.append(f"{case.title}: the error of the {name} is {error:.2g}, above {bound:.2g}")
    missing = heads.q.device.type == "cuda" and not has_kernel(heads.q, heads.v, case.branch_dims)
    note = {"has_kernel": False} if missing else {}
    if uses_interpreter(heads.q):
        note["interpreter"] = True
    return {"passed": not failures, "errors": errors, "bounds": bounds, "failures": failures, **note}


def _with_gradients(out: Tensor, heads: Heads) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, list(heads), heads.grad)]


def _distance(actual: Tensor, exact: Tensor) -> float:
    return (actual.double() - exact).norm().item()


def _exact(case: Case, heads: Heads, scale: float, weight: Tensor | None) -> tuple[list[Tensor], list[float]]:
    """Return the output and the gradients in float64, and the absolute error of each that always passes."""
    q, k, v, lam = (t.detach().double() for t in heads)
    B, H, N, _ = v.shape
    lam = lam.expand(B, H, N, 1).clone()
    leaves = [t.requires_grad_() for t in (q, k, v, lam)]
    out = formula(*leaves, case.branch_dims, scale, None if weight is None else weight.double())
    eps = torch.finfo(heads.q.dtype).eps
    if weight is not None:
        return [out.detach()], [FLOOR * eps * out.numel() ** 0.5]
    exact = [out.detach(), *torch.autograd.grad(out, leaves, heads.grad.double())]
    floors = [FLOOR * eps * t.numel() ** 0.5 for t in exact]
    if not case.per_token:
        # The gradient of a scalar is one sum, whose terms cancel. Their rounding errors do not, so the bound counts
        # them: the error of explicit maps alone can be 0 by chance.
        floors[-1] += eps * exact[-1].norm().item()
        exact[-1] = exact[-1].sum()
    return exact, floors
