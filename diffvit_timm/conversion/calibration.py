"""Calibration on images: moments and least squares for `calibrated`, similarity of attention maps for `pairs`."""

import itertools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor

from ..layers.base import differential_layers
from ..layers.hooks import observe_layers

__all__ = ["fit_projections", "head_pairs", "logit_moments", "plain_queries_and_keys"]

# Fraction of the mean energy that is added to every direction, so that the rotation does not lose directions which a
# handful of images never showed.
RIDGE = 1e-6
# Weight of the uniform map, which is mixed into each query's own map: queries of other images look at other keys.
UNIFORM_WEIGHT = 0.1
# Ridge of the least squares, as a fraction of the mean energy; it pulls towards the projection before the fit.
FIT_RIDGE = 1e-2


def plain_queries_and_keys(attn: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the queries and keys of timm's plain Attention.

    Args:
        attn: a plain attention layer.
        tokens: its input, (B, N, dim).

    Returns:
        q and k, (B, H, N, head_dim) each.
    """
    B, N, dim = tokens.shape
    # The first 2 * dim rows of qkv are those of the queries and the keys; the values are not needed.
    bias = None if attn.qkv.bias is None else attn.qkv.bias[: 2 * dim]
    qk = F.linear(tokens, attn.qkv.weight[: 2 * dim], bias)  # (B, N, 2 * dim)
    q, k = qk.reshape(B, N, 2, attn.num_heads, attn.head_dim).unbind(2)  # (B, N, H, head_dim) each
    return q.transpose(1, 2), k.transpose(1, 2)


def _plain_maps(attn: Attention, q: Tensor, k: Tensor) -> Tensor:
    """Attention maps, (B, H, N, N) in float32, from the q and k of `plain_queries_and_keys`."""
    return ((q * attn.scale) @ k.mT).softmax(dim=-1).float()


def _gram(rows: Tensor) -> Tensor:
    """Sum of x x^T over the rows x of each head: (B, H, N, d) -> (H, d, d), in float32."""
    rows = rows.transpose(0, 1).flatten(1, 2).float()  # (H, B * N, d)
    return rows.mT @ rows


def logit_moments(source: VisionTransformer, images: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Measure the second moments of each head's queries and keys.

    Dropping channels changes the logits of a query by some e_j, and moves its map a by KL(a || a') = Var_a(e) / 2 to
    second order. Each key therefore counts in proportion to the attention that it gets (a tenth of the weight is
    uniform), and it is centred on the mean of the keys under the query's map.

    The images are read once, batch by batch; the memory does not grow with their number.

    Args:
        source: a plain timm VisionTransformer; it is not changed.
        images: (n, C, H, W), normalised as the source expects, or an iterable of such batches; a few hundred suffice.

    Returns:
        One pair (E[q q^T], E[Cov_a(k)]) per block, float64, (num_heads, head_dim, head_dim) each. Cov_a(k) is the
        covariance of the keys under the map `a` of a query.

    Raises:
        ValueError: no images.
    """
    layers = [block.attn for block in source.blocks]
    grams = [torch.zeros(2, a.num_heads, a.head_dim, a.head_dim, dtype=torch.float64) for a in layers]

    def accumulate(index: int, attn: Attention, tokens: Tensor, output: Tensor) -> None:
        q, k = plain_queries_and_keys(attn, tokens)  # (B, H, N, d) each
        maps = _plain_maps(attn, q, k)  # (B, H, N, N)
        maps = torch.lerp(maps, torch.full_like(maps, 1 / maps.shape[-1]), UNIFORM_WEIGHT)
        # The covariance does not depend on the origin; near it, the difference below loses fewer digits.
        k = (k - k.mean(dim=2, keepdim=True)).float()
        # Sum over the queries of Cov_a(k) = E_a[k k^T] - E_a[k] E_a[k]^T. In the first term every key has the weight
        # that it gets from all queries together.
        key_weight = maps.sum(dim=-2).sqrt().unsqueeze(-1)  # (B, H, N, 1), the square root as _gram squares it
        moments = _gram(q), _gram(key_weight * k) - _gram(maps @ k)
        for gram, moment in zip(grams[index], moments, strict=True):
            gram += (moment / tokens.shape[1]).cpu()  # summed in float64 on the CPU: some devices do not have float64

    count = observe_layers(source, layers, images, accumulate)
    return [(_add_ridge(gram_q / count), _add_ridge(gram_k / count)) for gram_q, gram_k in grams]


def _add_ridge(gram: Tensor) -> Tensor:
    """Add RIDGE times the mean energy of each head to the diagonal of its Gram matrix, (H, d, d)."""
    energy = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]  # (H, 1, 1)
    return gram + RIDGE * energy * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def fit_projections(source: VisionTransformer, model: VisionTransformer, images: Tensor | Iterable[Tensor]) -> None:
    """Fit the output projection `proj` of every layer of a converted network to the source's attention output.

    For each layer this is a ridge regression of the source's attention output on the input of `proj`, both computed
    from the source's own tokens. It restores part of what the second branch and lambda took away. The weights are
    changed in place.

    Args:
        source: the plain timm VisionTransformer; it is not changed.
        model: the network that was converted from it, in evaluation mode.
        images: as in `logit_moments`. There should be many times more tokens than the model is wide (64 images are
            enough).

    Raises:
        ValueError: no images.
    """
    layers = differential_layers(model)
    dim = source.embed_dim
    bias = layers[0].proj.bias is not None
    size = dim + bias  # a column of ones stands for the bias
    grams = [torch.zeros(size, size + dim, dtype=torch.float64) for _ in layers]

    def accumulate(index: int, attn: Attention, tokens: Tensor, output: Tensor) -> None:
        heads, target = (t.flatten(0, 1).float() for t in (layers[index].attend(tokens), output))  # (B * N, dim) each
        if bias:
            heads = torch.cat([heads, torch.ones_like(heads[:, :1])], dim=1)  # (B * N, dim + 1)
        grams[index] += (heads.T @ torch.cat([heads, target], dim=1)).cpu()

    observe_layers(source, [block.attn for block in source.blocks], images, accumulate)
    for layer, gram in zip(layers, grams, strict=True):
        xx, xy = gram[:, :size], gram[:, size:]  # X^T X (size, size) and X^T Y (size, dim)
        start = torch.cat([layer.proj.weight.T, layer.proj.bias[None]] if bias else [layer.proj.weight.T])
        start = start.detach().cpu().double()  # (size, dim)
        ridge = FIT_RIDGE * xx.diagonal()[:dim].mean()
        # The minimiser of |X W - Y|^2 + ridge |W - start|^2.
        fitted = torch.linalg.solve(xx + ridge * torch.eye(size).to(xx), xy + ridge * start)
        with torch.no_grad():
            layer.proj.weight.copy_(fitted[:dim].T)
            if bias:
                layer.proj.bias.copy_(fitted[-1])


def head_pairs(source: VisionTransformer, images: Tensor | Iterable[Tensor]) -> list[list[int]]:
    """Order the heads of each block so that neighbours (0, 1), (2, 3), ... have the most similar attention maps.

    The pairs minimise the sum of the squared distances between their maps, by a perfect matching (Edmonds, 1965).

    Args:
        source: a plain timm VisionTransformer with an even number of heads; it is not changed.
        images: as in `logit_moments`.

    Returns:
        One list of head indices per block.

    Raises:
        ValueError: no images.
    """
    layers = [block.attn for block in source.blocks]
    grams = [torch.zeros(a.num_heads, a.num_heads, dtype=torch.float64) for a in layers]

    def accumulate(index: int, attn: Attention, tokens: Tensor, output: Tensor) -> None:
        maps = _plain_maps(attn, *plain_queries_and_keys(attn, tokens))  # (B, H, N, N)
        maps = maps.transpose(0, 1).flatten(1)  # (H, B * N * N)
        grams[index] += (maps @ maps.T).cpu()

    observe_layers(source, layers, images, accumulate)
    return [_matching_order(gram) for gram in grams]


def _matching_order(gram: Tensor) -> list[int]:
    """Order heads by the matching of least total distance, from the inner products of their maps, (H, H)."""
    import networkx  # not above: it is slow to import, and only this function needs it

    energy = gram.diagonal()
    distance = energy[:, None] + energy[None] - 2 * gram  # squared distances |a - b|^2 = |a|^2 + |b|^2 - 2 a.b
    graph = networkx.Graph()
    graph.add_weighted_edges_from((i, j, distance[i, j].item()) for i, j in itertools.combinations(range(len(gram)), 2))
    pairs = sorted(sorted(pair) for pair in networkx.min_weight_matching(graph))
    return [head for pair in pairs for head in pair]
