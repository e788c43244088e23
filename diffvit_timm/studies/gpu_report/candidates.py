"""The ways to compute attention that the stage `attention` compares."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...layers.kernels.layout import BranchDims, split_branches
from .inputs import Heads, make_heads
from .kernel import our_attention, stacked_attention

__all__ = ["FLASH", "OURS", "PLAIN", "STACKED", "candidates", "inference_call", "training_call"]

FLASH = "plain flash"
OURS, STACKED, TWO_CALLS, GROUPED = "ours", "stacked SDPA", "two calls, as timm", "SDPA with enable_gqa"
# Plain attention of the same width, by PyTorch's backend. The first available one is the reference.
PLAIN = {
    FLASH: SDPBackend.FLASH_ATTENTION,
    "plain cuDNN": SDPBackend.CUDNN_ATTENTION,
    "plain efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute attention.

    Attributes:
        inputs: tensors that it reads, which have gradients.
        function: function of them; returns the output of each head, (B, H, N, Dv).
    """

    inputs: tuple[Tensor, ...]
    function: Callable[..., Tensor]


def candidates(heads: Heads, branch_dims: BranchDims, scale: float) -> dict[str, Candidate]:
    """Return all candidates by name. Plain attention has queries, keys and values of its own, as a plain ViT lays them.

    Args:
        heads: the arguments of attention.
        branch_dims, scale: as in `differential_attention`.
    """
    options: dict[str, Any] = dict(branch_dims=branch_dims, scale=scale)
    B, H, N, width = heads.v.shape
    plain = make_heads(B, H, N, width, False, False, heads.v.dtype, str(heads.v.device)).leaves[:3]
    made = {name: Candidate(plain, _plain(backend)) for name, backend in PLAIN.items()}
    made[OURS] = Candidate(heads.leaves, partial(our_attention, **options))
    made[STACKED] = Candidate(heads.leaves, partial(stacked_attention, **options))
    made[TWO_CALLS] = Candidate(heads.leaves, partial(_two_calls, **options))
    if branch_dims is None:
        made[GROUPED] = Candidate(heads.leaves, partial(_grouped, scale=scale))
    return made


def _plain(backend: SDPBackend) -> Callable[..., Tensor]:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return function


def _two_calls(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, branch_dims: BranchDims, scale: float) -> Tensor:
    """Compute each branch by one call with the same values, as timm's DiffAttention does."""
    (q1, k1), (q2, k2) = split_branches(q, k, branch_dims)
    out1 = F.scaled_dot_product_attention(q1, k1, v, scale=scale)
    return out1 - lam.to(q.dtype) * F.scaled_dot_product_attention(q2, k2, v, scale=scale)


def _grouped(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, scale: float) -> Tensor:
    """Compute version 2 as grouped-query attention: twice the query heads, of which two share keys and values."""
    q = q.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)  # (B, 2 H, N, d)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
    out1, out2 = out.unflatten(1, (-1, 2)).unbind(2)  # (B, H, N, Dv)
    return out1 - lam.to(q.dtype) * out2


def inference_call(candidate: Candidate, grad: Tensor) -> Callable[[], object]:
    """Return a step that computes the output without gradients. `grad` is not used."""

    def step() -> Tensor:
        with torch.no_grad():
            return candidate.function(*candidate.inputs)

    return step


def training_call(candidate: Candidate, grad: Tensor) -> Callable[[], object]:
    """Return a step that computes the output and the gradients of all inputs."""

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(candidate.function(*candidate.inputs), candidate.inputs, grad)

    return step
