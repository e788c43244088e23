"""Conversion by images: moments and least squares for `calibrated`, similarity of maps for `pairs`."""

import itertools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor

from ..layers.hooks import observe_layers

__all__ = ["fit_projections", "head_pairs", "logit_moments", "plain_queries_and_keys"]

# Share of the mean energy added to every direction: those that a handful of images never showed stay in the rotation.
RIDGE = 1e-6
# Weight of the uniform map beside a query's own, for the keys that a query of other images would look at.
UNIFORM = 0.1
# RIDGE of the least squares, which stay that close to the projection that they start from.
FIT_RIDGE = 1e-2


def plain_queries_and_keys(attn: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """q and k, (B, H, N, head_dim) each, of timm's plain Attention on tokens (B, N, dim)."""
    B, N, dim = tokens.shape
    bias = None if attn.qkv.bias is None else attn.qkv.bias[: 2 * dim]
    q, k = F.linear(tokens, attn.qkv.weight[: 2 * dim], bias).reshape(B, N, 2, attn.num_heads, attn.head_dim).unbind(2)
    return q.transpose(1, 2), k.transpose(1, 2)


def _plain_maps(attn: Attention, q: Tensor, k: Tensor) -> Tensor:
    """(B, H, N, N), of the q and k of `plain_queries_and_keys`."""
    return ((q * attn.scale) @ k.mT).softmax(dim=-1).float()


def _gram(rows: Tensor) -> Tensor:
    """Sum of x x^T over the rows x (B, H, N, d) of each head, (H, d, d)."""
    rows = rows.transpose(0, 1).flatten(1, 2).float()
    return rows.mT @ rows


def logit_moments(source: VisionTransformer, images: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Second moments of each head's queries and keys, block by block.

    Dropping channels changes the logits of a query by some e_j, and its map a by KL(a || a') = Var_a(e) / 2 to second
    order. So a key counts as much as it is looked at (a tenth of the weight is uniform), about the mean that a query
    sees.

    The images are read once and batch by batch; memory does not grow with their number.

    Args:
        source: a plain timm VisionTransformer, not changed.
        images: (n, C, H, W), normalised as the source wants them, or batches of such; a few hundred do.

    Returns:
        A pair (E[q q^T], E[Cov_a(k)]) for each block, float64, (num_heads, head_dim, head_dim) each: the covariance of
        the keys under the map `a` of each query.

    Raises:
        ValueError: no images.
    """
    layers = [block.attn for block in source.blocks]
    grams = [torch.zeros(2, a.num_heads, a.head_dim, a.head_dim, dtype=torch.float64) for a in layers]

    def accumulate(index: int, attn: Attention, tokens: Tensor, output: Tensor) -> None:
        q, k = plain_queries_and_keys(attn, tokens)
        maps = _plain_maps(attn, q, k)
        maps = torch.lerp(maps, torch.full_like(maps, 1 / maps.shape[-1]), UNIFORM)
        k = (k - k.mean(dim=2, keepdim=True)).float()  # the covariance stays, its difference keeps digits
        looked_at = maps.sum(dim=-2).sqrt().unsqueeze(-1)
        moments = _gram(q), _gram(looked_at * k) - _gram(maps @ k)
        for gram, moment in zip(grams[index], moments, strict=True):
            gram += (moment / tokens.shape[1]).cpu()  # summed in float64, which not every device has

    count = observe_layers(source, layers, images, accumulate)
    return [(_ridged(gram_q / count), _ridged(gram_k / count)) for gram_q, gram_k in grams]


def _ridged(gram: Tensor) -> Tensor:
    energy = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return gram + RIDGE * energy * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def fit_projections(source: VisionTransformer, model: VisionTransformer, images: Tensor | Iterable[Tensor]) -> None:
    """Set each `proj` of a converted net, in place, to what brings its attention output nearest to the source's.

    Ridge regression of the source's attention output, on the source's own tokens, on the input of `proj`, layer by
    layer: it gives back part of what the second branch and lambda took.

    Args:
        source: the plain timm VisionTransformer, not changed.
        model: converted from it, in evaluation mode.
        images: as in `logit_moments`; tokens should outnumber the model's width many times (64 images do).

    Raises:
        ValueError: no images.
    """
    layers = model.differential_layers()
    bias = layers[0].proj.bias is not None
    size = source.embed_dim + bias
    grams = [torch.zeros(size, size + source.embed_dim, dtype=torch.float64) for _ in layers]

    def accumulate(index: int, attn: Attention, tokens: Tensor, output: Tensor) -> None:
        heads, target = (t.flatten(0, 1).float() for t in (layers[index].attend(tokens), output))
        if bias:
            heads = torch.cat([heads, torch.ones_like(heads[:, :1])], dim=1)
        grams[index] += (heads.T @ torch.cat([heads, target], dim=1)).cpu()

    observe_layers(source, [block.attn for block in source.blocks], images, accumulate)
    for layer, gram in zip(layers, grams, strict=True):
        xx, xy = gram[:, :size], gram[:, size:]
        start = torch.cat([layer.proj.weight.T, layer.proj.bias[None]] if bias else [layer.proj.weight.T])
        start = start.detach().cpu().double()
        ridge = FIT_RIDGE * xx.diagonal()[: source.embed_dim].mean()
        fitted = torch.linalg.solve(xx + ridge * torch.eye(size).to(xx), xy + ridge * start)
        with torch.no_grad():
            layer.proj.weight.copy_(fitted[: source.embed_dim].T)
            if bias:
                layer.proj.bias.copy_(fitted[-1])


def head_pairs(source: VisionTransformer, images: Tensor | Iterable[Tensor]) -> list[list[int]]:
    """The order of each block's heads in which neighbours (0, 1), (2, 3), ... have the most similar maps.

    The pairs minimise the sum of the squared distances of their maps, by a perfect matching (Edmonds, 1965).

    Args:
        source: a plain timm VisionTransformer with an even number of heads, not changed.
        images: as in `logit_moments`.

    Raises:
        ValueError: no images.
    """
    layers = [block.attn for block in source.blocks]
    grams = [torch.zeros(a.num_heads, a.num_heads, dtype=torch.float64) for a in layers]

    def accumulate(index: int, attn: Attention, tokens: Tensor, output: Tensor) -> None:
        maps = _plain_maps(attn, *plain_queries_and_keys(attn, tokens)).transpose(0, 1).flatten(1)
        grams[index] += (maps @ maps.T).cpu()

    observe_layers(source, layers, images, accumulate)
    return [_matching_order(gram) for gram in grams]


def _matching_order(gram: Tensor) -> list[int]:
    import networkx  # slow to import, and for this alone

    energy = gram.diagonal()
    distance = energy[:, None] + energy[None] - 2 * gram
    graph = networkx.Graph()
    graph.add_weighted_edges_from((i, j, distance[i, j].item()) for i, j in itertools.combinations(range(len(gram)), 2))
    pairs = sorted(sorted(pair) for pair in networkx.min_weight_matching(graph))
    return [head for pair in pairs for head in pair]
