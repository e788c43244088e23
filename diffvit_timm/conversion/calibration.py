"""Calibration on images: moments and least squares for `calibrated`, similarity of attention maps for `pairs`."""

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import maybe_add_mask
from torch import Tensor, nn

from ..layers.adapters import check_layers, plain_inputs
from ..layers.adapters.projections import output_projection
from ..layers.base import differential_layers
from ..layers.hooks import Call, observe_layers, require_finite_values
from .surgery import head_width

__all__ = ["fit_projections", "head_pairs", "logit_moments", "plain_logits"]

# Fraction of the mean energy that is added to every direction, so that the rotation does not lose directions which a
# handful of images never showed.
RIDGE = 1e-6
# Keys that differ by less than this number of rounding errors are equal.
EQUAL_KEYS = 10
# Weight of the uniform map, which is mixed into each query's own map: queries of other images look at other keys.
UNIFORM_WEIGHT = 0.1
# Ridge of the least squares, as a fraction of the mean energy; it pulls towards the projection before the fit.
FIT_RIDGE = 1e-2


def plain_logits(layer: nn.Module, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the queries, keys and logits of a plain attention layer.

    Args:
        layer: a plain layer with an adapter.
        call: its arguments in a forward pass.

    Returns:
        q and k after norms and rotary embedding, (B, H, N, d) each, and the logits with their bias, (B, H, N, N).
    """
    q, k, _, bias, scale = plain_inputs(layer, call.args, call.kwargs)
    return q, k, maybe_add_mask((q * scale) @ k.mT, bias)


def _gram(rows: Tensor) -> Tensor:
    """Sum of x x^T over the rows x of each head: (B, H, N, d) -> (H, d, d), in float32."""
    rows = rows.transpose(0, 1).flatten(1, 2).float()  # (H, B * N, d)
    return rows.mT @ rows


def logit_moments(source: nn.Module, images: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Measure the second moments of each head's queries and keys.

    Dropping channels changes the logits of a query by some e_j, and moves its map a by KL(a || a') = Var_a(e) / 2 to
    second order. Each key therefore counts in proportion to the attention that it gets (a tenth of the weight is
    uniform), and it is centred on the mean of the keys under the query's map.

    The images are read once, batch by batch; the memory does not grow with their number.

    Args:
        source: a plain network of timm; it is not changed.
        images: (n, C, H, W), normalised as the source expects, or an iterable of such batches; a few hundred suffice.

    Returns:
        One pair (E[q q^T], E[Cov_a(k)]) per layer, float64, (num_heads, head_dim, head_dim) each. Cov_a(k) is the
        covariance of the keys under the map `a` of a query. It is 0 for a head whose keys are equal in each image.

    Raises:
        ValueError: no images, or a layer whose queries or keys are not finite.
    """
    named = check_layers(source)
    layers: list[Any] = list(named.values())
    shapes = [(2, layer.num_heads, head_width(layer), head_width(layer)) for layer in layers]
    grams = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    noise = [
        torch.zeros(layer.num_heads, dtype=torch.float64) for layer in layers
    ]  # energy of the rounding errors of the keys

    def accumulate(index: int, layer: nn.Module, call: Call) -> None:
        q, k, logits = plain_logits(layer, call)  # (B, H, N, d) twice and (B, H, N, N)
        maps = logits.softmax(dim=-1).float()
        maps = torch.lerp(maps, torch.full_like(maps, 1 / maps.shape[-1]), UNIFORM_WEIGHT)
        noise[index] += (
            k.float().square().mean(dim=2).sum((0, 2)) * (EQUAL_KEYS * torch.finfo(k.dtype).eps) ** 2
        ).cpu()
        # The covariance does not depend on the origin; near it, the difference below loses fewer digits.
        k = (k - k.mean(dim=2, keepdim=True)).float()
        # Sum over the queries of Cov_a(k) = E_a[k k^T] - E_a[k] E_a[k]^T. In the first term every key has the weight
        # that it gets from all queries together.
        key_weight = maps.sum(dim=-2).sqrt().unsqueeze(-1)  # (B, H, N, 1), the square root as _gram squares it
        moments = _gram(q), _gram(key_weight * k) - _gram(maps @ k)
        for gram, moment in zip(grams[index], moments, strict=True):
            gram += (moment / q.shape[2]).cpu()  # summed in float64 on the CPU: some devices do not have float64

    count = observe_layers(source, layers, images, accumulate)
    _require_finite(named, grams)
    for gram, energy in zip(grams, noise, strict=True):
        gram[1, gram[1].diagonal(dim1=-2, dim2=-1).sum(-1) <= energy] = 0
    return [(_add_ridge(gram_q / count), _add_ridge(gram_k / count)) for gram_q, gram_k in grams]


def _require_finite(names: Iterable[str], grams: list[Tensor]) -> None:
    """Check the statistics of each layer."""
    for name, gram in zip(names, grams, strict=True):
        require_finite_values(name, gram)


def _add_ridge(gram: Tensor) -> Tensor:
    """Add RIDGE times the mean energy of each head to the diagonal of its Gram matrix, (H, d, d)."""
    energy = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]  # (H, 1, 1)
    return gram + RIDGE * energy * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def fit_projections(source: nn.Module, model: nn.Module, images: Tensor | Iterable[Tensor]) -> None:
    """Fit the output projection of every layer of a converted network to the source's attention output.

    For each layer this is a ridge regression of the source's attention output on the input of the projection, both
    computed from the source's own tokens. It restores part of what the second branch and lambda took away. The weights
    are changed in place; a projection whose input is always 0 keeps its weights.

    Args:
        source: the plain network; it is not changed.
        model: the network that was converted from it, in evaluation mode.
        images: as in `logit_moments`. There should be many times more tokens than the model is wide (64 images are
            enough).

    Raises:
        ValueError: no images, or a layer whose output is not finite.
    """
    layers = differential_layers(model)
    projections = [output_projection(layer) for layer in layers]
    # In each layer, X is the input of the projection and a column of ones for the bias, and Y the source's output.
    sizes = [(proj.in_features + (proj.bias is not None), proj.out_features) for proj in projections]
    grams = [torch.zeros(rows, rows + columns, dtype=torch.float64) for rows, columns in sizes]

    def accumulate(index: int, plain: nn.Module, call: Call) -> None:
        layer = layers[index]
        heads = layer.attend(*call.args, **call.kwargs).flatten(0, 1).float()  # (B * N, width of the heads)
        target = call.output.flatten(0, 1).float()  # (B * N, dim)
        if projections[index].bias is not None:
            heads = torch.cat([heads, torch.ones_like(heads[:, :1])], dim=1)
        grams[index] += (heads.T @ torch.cat([heads, target], dim=1)).cpu()

    named = check_layers(source)
    observe_layers(source, list(named.values()), images, accumulate)
    _require_finite(named, grams)
    for proj, gram, (size, _) in zip(projections, grams, sizes, strict=True):
        xx, xy = gram[:, :size], gram[:, size:]  # X^T X (size, size) and X^T Y (size, dim)
        start = proj.weight.T if proj.bias is None else torch.cat([proj.weight.T, proj.bias[None]])
        start = start.detach().cpu().double()  # (size, dim)
        ridge = FIT_RIDGE * xx.diagonal()[: proj.in_features].mean()
        if ridge == 0:
            continue
        # The minimiser of |X W - Y|^2 + ridge |W - start|^2.
        fitted = torch.linalg.solve(xx + ridge * torch.eye(size).to(xx), xy + ridge * start)
        with torch.no_grad():
            proj.weight.copy_(fitted[: proj.in_features].T)
            if proj.bias is not None:
                proj.bias.copy_(fitted[-1])


def head_pairs(source: nn.Module, images: Tensor | Iterable[Tensor]) -> list[list[int]]:
    """Order the heads of each layer so that neighbours (0, 1), (2, 3), ... have the most similar attention maps.

    The pairs minimise the sum of the squared distances between their maps, by a perfect matching (Edmonds, 1965).

    Args:
        source: a plain network with an even number of heads; it is not changed.
        images: as in `logit_moments`.

    Returns:
        One list of head indices per layer.

    Raises:
        ValueError: no images, or a layer whose maps are not finite.
    """
    named = check_layers(source)
    layers: list[Any] = list(named.values())
    grams = [torch.zeros(layer.num_heads, layer.num_heads, dtype=torch.float64) for layer in layers]

    def accumulate(index: int, layer: nn.Module, call: Call) -> None:
        maps = plain_logits(layer, call)[-1].softmax(dim=-1).float()  # (B, H, N, N)
        maps = maps.transpose(0, 1).flatten(1)  # (H, B * N * N)
        grams[index] += (maps @ maps.T).cpu()

    observe_layers(source, layers, images, accumulate)
    _require_finite(named, grams)
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
