"""What a conversion kept, measured on images: the report beside `from_vit`."""

import dataclasses
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

from .attention import DifferentialAttention
from .calibration import batches_for, plain_queries_and_keys
from .diffvit import DiffVisionTransformer

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
        energy_kept: share of the source's logit energy in branch 1, a layer (logits less their mean over the keys).
        tail_std: standard deviation of branch 2's logits over the keys, a layer, nats.
        lambdas: lambda of each layer.
    """

    images: int
    agreement: float | None
    kl: float | None
    output_error: float
    attention_error: list[float]
    energy_kept: list[float]
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
            lines.append(f"{layer:5d}  {error:15.4f}  {energy:11.1%}  {tail:15.3f}  {lam:6.3f}")
        return "\n".join(lines)


def _centred_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    logits = (q * scale) @ k.mT
    return logits - logits.mean(dim=-1, keepdim=True)


def _compare_layers(source: Attention, layer: DifferentialAttention, tokens: Tensor, output: Tensor) -> Tensor:
    """Sums over one batch: squared output error and norm, squared logit error and norm, squared tail and its count."""
    q, k = plain_queries_and_keys(source, tokens)
    logits = _centred_logits(q, k, source.scale)
    d1 = layer.branch_dims[0]
    q, k, _ = layer.project_qkv(tokens)
    branch1 = _centred_logits(q[..., :d1], k[..., :d1], layer.scale)
    tail = _centred_logits(q[..., d1:], k[..., d1:], layer.scale)
    pairs = ((layer(tokens) - output, output), (branch1 - logits, logits))
    sums = [t.double().square().sum() for pair in pairs for t in pair]
    return torch.stack([*sums, tail.double().square().sum(), torch.tensor(float(tail.numel()), device=tail.device)])


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
        ValueError: no images.
    """
    modes = {network: network.training for network in (source, model)}
    converted = model.differential_layers() if isinstance(model, DiffVisionTransformer) else []
    layers = list(zip([block.attn for block in source.blocks], converted, strict=True)) if converted else []
    device = next(source.parameters()).device
    count = agree = 0
    kl = error = norm = 0.0
    sums = torch.zeros(len(layers), 6, dtype=torch.float64, device=device)

    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [attn.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for attn, _ in layers]
    try:
        source.eval(), model.eval()
        for batch in batches_for(source, images):
            seen.clear()
            expected, actual = source(batch).double(), model(batch).double()
            count += len(batch)
            agree += int((expected.argmax(-1) == actual.argmax(-1)).sum())
            kl += F.kl_div(actual.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="sum").item()
            error += (actual - expected).square().sum().item()
            norm += expected.square().sum().item()
            for row, (attn, layer), (tokens, output) in zip(sums, layers, seen, strict=True):
                row += _compare_layers(attn, layer, tokens, output)
    finally:
        for hook in hooks:
            hook.remove()
        for network, mode in modes.items():
            network.train(mode)
    if not count:
        raise ValueError("images is empty: the report needs at least one image")

    out_error, out_norm, logit_error, logit_norm, tail, entries = sums.unbind(1)
    has_head = source.num_classes > 0
    return ConversionReport(
        images=count,
        agreement=agree / count if has_head else None,
        kl=kl / count if has_head else None,
        output_error=(error / norm) ** 0.5,
        attention_error=(out_error / out_norm).sqrt().tolist(),
        energy_kept=(1 - logit_error / logit_norm).tolist(),
        tail_std=(tail / entries).sqrt().tolist(),
        lambdas=[layer.compute_lambda().item() for layer in converted],
    )
