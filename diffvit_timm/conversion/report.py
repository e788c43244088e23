"""Report of how much of a plain ViT its conversion kept, measured on images."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.adapters import attention_output, check_layers, plain_inputs
from ..layers.base import DifferentialLayer, attention_kind, differential_layers
from ..layers.hooks import Call, batches_for, evaluating, observing, require_finite_values
from ..layers.kernels.layout import split_branches

__all__ = ["ConversionReport", "conversion_report"]

# Below this agreement, or above this output error without a head, a report recommends version 2. Fine-tuning made up
# for an agreement of 94 %.
LOW_AGREEMENT, LARGE_ERROR = 0.8, 0.5


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """Differences between a Diff-ViT and the plain ViT that it was converted from, measured on the same images.

    Attributes:
        attn: attention of the converted network: 'diff', 'diff_v2', or 'plain' if it has no differential layers.
        images: number of images.
        agreement: fraction of the images whose top-1 class is that of the source; None if the network has no head.
        kl: KL(source || model) of the class probabilities in nats, mean over the images; None without a head.
        output_error: ||model - source|| / ||source|| of the logits, or of the features without a head.
        attention_error: the same ratio for the attention output of each layer; both layers get the source's tokens.
        energy_kept: fraction of the source's logit energy that branch 1 keeps, per layer. The mean over the keys is
            subtracted from the logits first. None where two heads became one.
        tail_std: standard deviation over the keys of the logits of branch 2 in nats, per layer.
        lambdas: lambda of each layer; in version 2 the mean over tokens and heads.
    """

    attn: str
    images: int
    agreement: float | None
    kl: float | None
    output_error: float
    attention_error: list[float]
    energy_kept: list[float | None]
    tail_std: list[float]
    lambdas: list[float]

    def to_dict(self) -> dict:
        """Return all figures, ready for JSON."""
        return dataclasses.asdict(self)

    def summary(self) -> dict:
        """Return the figures of the whole network, without those per layer."""
        return {k: v for k, v in self.to_dict().items() if not isinstance(v, list) and k != "attn"}

    def _keeps_little(self) -> bool:
        return self.output_error > LARGE_ERROR if self.agreement is None else self.agreement < LOW_AGREEMENT

    def __str__(self) -> str:
        """Format the report as a line for the network and a table with one row per layer."""
        lines = [f"conversion on {self.images} images: output error {self.output_error:.3f}"]
        if self.agreement is not None:
            lines[0] += f", top-1 agreement {self.agreement:.1%}, KL {self.kl:.4f} nats"
        lines.append("layer  attention error  energy kept  tail std (nats)  lambda")
        rows = zip(self.attention_error, self.energy_kept, self.tail_std, self.lambdas, strict=True)
        for layer, (error, energy, tail, lam) in enumerate(rows):
            kept = "-" if energy is None else f"{energy:.1%}"
            lines.append(f"{layer:5d}  {error:15.4f}  {kept:>11s}  {tail:15.3f}  {lam:6.3f}")
        if self.attn == "diff" and self._keeps_little():
            lines.append(
                "Version 1 keeps little of this network. Version 2 (attn=diff_v2) keeps all of it, and adds one query "
                "per head."
            )
        return "\n".join(lines)


def _centred_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Logits minus their mean over the keys, which no softmax notices: (B, H, N, d) twice -> (B, H, N, N)."""
    logits = (q * scale) @ k.mT
    return logits - logits.mean(dim=-1, keepdim=True)


def _compare_layers(plain: nn.Module, layer: DifferentialLayer, call: Call, images: int) -> Tensor:
    """Compare a plain layer with its converted layer on one batch.

    Args:
        plain: the plain layer.
        layer: the converted layer.
        call: arguments and output of the plain layer.
        images: number of images of the batch.

    Returns:
        Six sums over the batch, float64 on the CPU: squared output error, squared output, squared logit error, squared
        logits, mean squared logit of branch 2, lambda.
    """
    q, k, _, _, scale = plain_inputs(plain, call.args, call.kwargs)
    logits = _centred_logits(q, k, scale)  # (B, H, N, N)
    q, k, _, lam, _ = layer.branches(*call.args, **call.kwargs)
    branch1, tail = (_centred_logits(*branch, layer.scale) for branch in split_branches(q, k, layer.branch_dims))
    if branch1.shape != logits.shape:  # two heads became one, so there is no source head to compare branch 1 with
        branch1 = torch.full_like(logits, torch.nan)
    error = attention_output(layer, call.args, call.kwargs) - call.output
    terms = (error, call.output, branch1 - logits, logits)
    sums = [t.float().square().sum() for t in terms]
    sums += [tail.float().square().mean() * images, lam.mean() * images]
    return torch.stack(sums).cpu().double()  # first to the CPU: some devices do not have float64


def _ratio(error: Tensor, norm: Tensor) -> Tensor:
    """Divide errors by norms. The ratio is 0 wherever the error is 0, also if the norm is 0."""
    return torch.where(error == 0, 0.0, error / norm)


@torch.inference_mode()
def conversion_report(source: Any, model: nn.Module, images: Tensor | Iterable[Tensor]) -> ConversionReport:
    """Compare a Diff-ViT with the plain ViT that it was converted from.

    Args:
        source: the plain network.
        model: the converted network. A network without differential attention is compared only by its outputs.
        images: (n, C, H, W), normalised as the models expect, or an iterable of such batches; at least one image.

    Raises:
        ValueError: no images, outputs of the source that are not finite, or networks whose outputs have different
            shapes.
    """
    converted = differential_layers(model)
    layer_pairs = list(zip(check_layers(source).values(), converted, strict=True)) if converted else []
    count = agree = 0
    kl = error = norm = 0.0
    sums = torch.zeros(len(layer_pairs), 6, dtype=torch.float64)

    # Arguments and output of each of the source's attention layers for the current batch, first layer first.
    seen: list[Call] = []
    plain_layers = [plain for plain, _ in layer_pairs]
    with evaluating(source, model), observing(plain_layers, lambda _index, _layer, call: seen.append(call)):
        for batch in batches_for(source, images):
            seen.clear()
            expected, actual = source(batch).cpu().double(), model(batch).cpu().double()  # (B, classes) each
            if expected.shape != actual.shape:
                shapes = f"{tuple(expected.shape)} and {tuple(actual.shape)}"
                raise ValueError(f"outputs of {shapes} cannot be compared: give both networks the same classes")
            log_probs = actual.log_softmax(-1), expected.log_softmax(-1)
            count += len(batch)
            agree += int((expected.argmax(-1) == actual.argmax(-1)).sum())
            kl += F.kl_div(*log_probs, log_target=True, reduction="sum").item()
            error += (actual - expected).square().sum().item()
            norm += expected.square().sum().item()
            for row, (plain, layer), call in zip(sums, layer_pairs, seen, strict=True):
                row += _compare_layers(plain, layer, call, len(batch))
    if not count:
        raise ValueError("images is empty: the report needs at least one image")
    require_finite_values("the source", torch.tensor(norm))

    out_error, out_norm, logit_error, logit_norm, tail, lam = sums.unbind(1)  # (layers,) each
    has_head = (
        source.num_classes > 0 and getattr(source, "global_pool", "avg") != ""
    )  # without pooling there are outputs per token
    return ConversionReport(
        attn=attention_kind(model),
        images=count,
        agreement=agree / count if has_head else None,
        kl=kl / count if has_head else None,
        output_error=_ratio(torch.tensor(error), torch.tensor(norm)).sqrt().item(),
        attention_error=_ratio(out_error, out_norm).sqrt().tolist(),
        energy_kept=[None if math.isnan(kept) else kept for kept in (1 - logit_error / logit_norm).tolist()],
        tail_std=(tail / count).sqrt().tolist(),
        lambdas=(lam / count).tolist(),
    )
