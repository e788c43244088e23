"""Second moments of a plain ViT's queries and keys on images, for the `calibrated` conversion."""

from collections.abc import Iterable

import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor

__all__ = ["logit_moments"]

# Share of the mean energy added to every direction: those that a handful of images never showed stay in the rotation.
RIDGE = 1e-6


def _accumulate(attn: Attention, tokens: Tensor, gram_q: Tensor, gram_k: Tensor) -> None:
    B, N, _ = tokens.shape
    q, k, _ = attn.qkv(tokens).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    k = k - k.mean(dim=2, keepdim=True)  # what all keys of an image share changes no softmax
    for gram, rows in ((gram_q, q), (gram_k, k)):
        rows = rows.transpose(0, 1).flatten(1, 2).double()  # (H, B N, d)
        gram += rows.mT @ rows / N


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
        for batch in images.split(16) if isinstance(images, Tensor) else images:
            source.forward_features(batch.to(device))
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
