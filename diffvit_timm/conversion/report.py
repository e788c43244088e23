"""What a conversion kept, measured on images: the report beside `from_vit`."""

import dataclasses
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..layers.attention import DifferentialLayer
from ..layers.hooks import batches_for, evaluating
from ..layers.kernels.layout import split_branches
from ..models.diff_vision_transformer import DiffVisionTransformer
from .calibration import plain_queries_and_keys

__all__ = ["ConversionReport", "conversion_report"]


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """How a Diff-ViT differs from the plain ViT that it came from, on the same images.

    Attributes:
        images: how many.
        agreement: share of the images whose top-1 class is the source's; None for a network without a head.
        kl: KL(source || model) of the class probabilities, nats, mean over the images; None without a head.
        output_error: ||model - source|| / ||source|| of the logits, or of the features without a head.
        attention_error: the same of each layer's attention output, both layers given the source's tokens.
        energy_kept: share of the source's logit energy in branch 1, a layer (logits less their mean over the keys);
            None where two heads became one.
        tail_std: standard deviation of branch 2's logits over the keys, a layer, nats.
        lambdas: lambda of each layer; of version 2 its mean over tokens and heads.
    """

    images: int
    agreement: float | None
    kl: float | None
    output_error: float
    attention_error: list[float]
    energy_kept: list[float | None]
    tail_std: list[float]
    lambdas: list[float]

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def summary(self) -> dict:
        """The figures that are one number for the network."""
        return {key: value for key, value in self.to_dict().items() if not isinstance(value, list)}

    def __str__(self) -> str:
        lines = [f"conversion on {self.images} images: output error {self.output_error:.3f}"]
        if self.agreement is not None:
            lines[0] += f", top-1 agreement {self.agreement:.1%}, KL {self.kl:.4f} nats"
        lines.append("layer  attention error  energy kept  tail std (nats)  lambda")
        rows = zip(self.attention_error, self.energy_kept, self.tail_std, self.lambdas, strict=True)
        for layer, (error, energy, tail, lam) in enumerate(rows):
            kept = "-" if energy is None else f"{energy:.1%}"
            lines.append(f"{layer:5d}  {error:15.4f}  {kept:>11s}  {tail:15.3f}  {lam:6.3f}")
        return "\n".join(lines)


def _centred_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    logits = (q * scale) @ k.mT
    return logits - logits.mean(dim=-1, keepdim=True)


def _compare_layers(source: Attention, layer: DifferentialLayer, tokens: Tensor, output: Tensor) -> Tensor:
    """Sums over one batch: squared output error and norm, squared logit error and norm, squared tail, lambda."""
    q, k = plain_queries_and_keys(source, tokens)
    logits = _centred_logits(q, k, source.scale)
    q, k, _ = layer.project_qkv(tokens)
    branch1, tail = (_centred_logits(*branch, layer.scale) for branch in split_branches(q, k, layer.branch_dims))
    if branch1.shape != logits.shape:  # two heads became one, and branch 1 is not the source's
        branch1 = torch.full_like(logits, torch.nan)
    terms = (layer(tokens) - output, output, branch1 - logits, logits)
    sums = [t.float().square().sum() for t in terms]
    sums += [tail.float().square().mean() * len(tokens), layer.compute_lambda(tokens).mean() * len(tokens)]
    return torch.stack(sums).cpu().double()  # not every device has float64


@torch.inference_mode()
def conversion_report(
    source: VisionTransformer, model: nn.Module, images: Tensor | Iterable[Tensor]
) -> ConversionReport:
    """Compare a Diff-ViT with the plain ViT that it came from.

    Args:
        source: the plain timm VisionTransformer.
        model: the DiffVisionTransformer; any other network is compared by its outputs alone.
        images: (n, C, H, W), normalised as the models want them, or batches of such; at least one image.

    Raises:
        ValueError: no images, or networks of different outputs.
    """
    converted = model.differential_layers() if isinstance(model, DiffVisionTransformer) else []
    layers = list(zip([block.attn for block in source.blocks], converted, strict=True)) if converted else []
    count = agree = 0
    kl = error = norm = 0.0
    sums = torch.zeros(len(layers), 6, dtype=torch.float64)

    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [attn.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for attn, _ in layers]
    try:
        with evaluating(source, model):
            for batch in batches_for(source, images):
                seen.clear()
                expected, actual = source(batch).cpu().double(), model(batch).cpu().double()
                if expected.shape != actual.shape:
                    shapes = f"{tuple(expected.shape)} and {tuple(actual.shape)}"
                    raise ValueError(f"outputs of {shapes} cannot be compared: give both networks the same classes")
                logs = actual.log_softmax(-1), expected.log_softmax(-1)
                count += len(batch)
                agree += int((expected.argmax(-1) == actual.argmax(-1)).sum())
                kl += F.kl_div(*logs, log_target=True, reduction="sum").item()
                error += (actual - expected).square().sum().item()
                norm += expected.square().sum().item()
                for row, (attn, layer), (tokens, output) in zip(sums, layers, seen, strict=True):
                    row += _compare_layers(attn, layer, tokens, output)
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("images is empty: the report needs at least one image")

    out_error, out_norm, logit_error, logit_norm, tail, lam = sums.unbind(1)
    has_head = source.num_classes > 0 and source.global_pool != ""  # of one token, not of each
    return ConversionReport(
        images=count,
        agreement=agree / count if has_head else None,
        kl=kl / count if has_head else None,
        output_error=(error / norm) ** 0.5,
        attention_error=(out_error / out_norm).sqrt().tolist(),
        energy_kept=[None if math.isnan(kept) else kept for kept in (1 - logit_error / logit_norm).tolist()],
        tail_std=(tail / count).sqrt().tolist(),
        lambdas=(lam / count).tolist(),
    )
