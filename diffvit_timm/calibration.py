"""Second moments of a plain ViT's queries and keys on images, for the `calibrated` conversion."""

from collections.abc import Iterable, Iterator

import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

__all__ = ["logit_moments"]

# Share of the mean energy added to every direction: those that a handful of images never showed stay in the rotation.
RIDGE = 1e-6


def plain_queries_and_keys(attn: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """q and k, (B, H, N, head_dim) each, of timm's plain Attention on tokens (B, N, dim)."""
    B, N, _ = tokens.shape
    qkv = attn.qkv(tokens).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    return qkv[0], qkv[1]


def batches_for(model: nn.Module, images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    """The images in batches, on the model's device and in its dtype."""
    like = next(model.parameters())
    return (batch.to(like) for batch in (images.split(16) if isinstance(images, Tensor) else images))


def _accumulate(attn: Attention, tokens: Tensor, gram_q: Tensor, gram_k: Tensor) -> None:
    q, k = plain_queries_and_keys(attn, tokens)
    k = k - k.mean(dim=2, keepdim=True)  # what all keys of an image share changes no softmax
    for gram, rows in ((gram_q, q), (gram_k, k)):
        rows = rows.transpose(0, 1).flatten(1, 2).double()  # (H, B N, d)
        gram += rows.mT @ rows / tokens.shape[1]


@torch.inference_mode()
def logit_moments(source: VisionTransformer, images: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Second moments of each head's queries and keys, block by block.

    The images are read once and batch by batch; memory does not grow with their number.

    Args:
        source: a plain timm VisionTransformer, not changed.
        images: (n, C, H, W), normalised as the source wants them, or batches of such; a few hundred do.

    Returns:
        A pair (E[q q^T], E[k k^T]) for each block, float64, (num_heads, head_dim, head_dim) each, the keys less their
        mean over each image.

    Raises:
        ValueError: no images.
    """
    layers = [block.attn for block in source.blocks]
    device = next(source.parameters()).device
    grams = [
        tuple(torch.zeros(a.num_heads, a.head_dim, a.head_dim, dtype=torch.float64, device=device) for _ in range(2))
        for a in layers
    ]
    hooks = [
        attn.register_forward_pre_hook(lambda module, args, pair=pair: _accumulate(module, args[0], *pair))
        for attn, pair in zip(layers, grams, strict=True)
    ]
    mode, count = source.training, 0
    try:
        source.eval()
        for batch in batches_for(source, images):
            source.forward_features(batch)
            count += len(batch)
    finally:
        source.train(mode)
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("images is empty: calibration needs at least one image")
    return [(_ridged(gram_q / count), _ridged(gram_k / count)) for gram_q, gram_k in grams]


def _ridged(gram: Tensor) -> Tensor:
    energy = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return gram + RIDGE * energy * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
