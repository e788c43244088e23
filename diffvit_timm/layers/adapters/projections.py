"""Read and replace the projections of an attention layer, in whichever form timm stores them.

timm has four forms of the query, key and value projections: one Linear `qkv` with its own bias; one Linear `qkv`
without a bias, beside the parameters `q_bias` and `v_bias`; one Linear `in_proj`, whose first rows are those of an MLP;
and three Linears `q_proj`, `k_proj` and `v_proj`. timm has four names for the output projection.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..base import FUSED_PROJECTIONS, OUTPUT_PROJECTIONS
from ..kernels.packing import split_projection

__all__ = [
    "input_projections",
    "merge_heads",
    "mlp_rows",
    "output_projection",
    "read_qkv",
    "scale_output",
    "split_heads",
    "split_qkv",
    "write_qkv",
]

torch.fx.wrap("split_projection")


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """Split channels into heads: (B, N, H * d) -> (B, H, N, d)."""
    B, N, _ = x.shape
    return x.reshape(B, N, -1, head_dim).transpose(1, 2)


def split_qkv(qkv: Tensor, width: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split the output of a fused projection into heads.

    Args:
        qkv: (B, N, queries + 2 * width). The queries have `width` channels in plain attention and in version 1 of
            differential attention, and twice as many in version 2.
        width: number of channels of the keys, and of the values.
        head_dim: width of a head.

    Returns:
        q, (B, H or 2 H, N, d); k and v, (B, H, N, d) each.
    """
    q, k, v = split_projection(qkv, qkv.shape[-1] - 2 * width, width)
    return split_heads(q, head_dim), split_heads(k, head_dim), split_heads(v, head_dim)


def merge_heads(heads: Tensor) -> Tensor:
    """Merge the outputs of heads: (B, H, N, d) -> (B, N, H * d)."""
    return heads.transpose(1, 2).flatten(2)


def input_projections(layer: Any) -> list[nn.Linear]:
    """Return the Linear layers that project the tokens to queries, keys and values: one or three."""
    for name in FUSED_PROJECTIONS:
        if getattr(layer, name, None) is not None:
            return [getattr(layer, name)]
    # The Linear is a part of Gemma's projections, which may clip their inputs and outputs.
    return [getattr(part, "linear", part) for part in (layer.q_proj, layer.k_proj, layer.v_proj)]


def output_projection(layer: Any) -> nn.Linear:
    """Return the Linear layer that projects the merged heads."""
    name = next(name for name in OUTPUT_PROJECTIONS if getattr(layer, name, None) is not None)
    part = getattr(layer, name)
    return getattr(part, "linear", part)


@torch.no_grad()
def scale_output(layer: Any, factor: float) -> None:
    """Multiply the weight of the output projection, in place, and adjust the range to which its input is clipped."""
    output_projection(layer).weight.mul_(factor)
    if getattr(layer, "o_proj", None) is not None and layer.o_proj.use_clipped:
        # The merged heads will be smaller by the factor, and are clipped accordingly.
        layer.o_proj.input_min.div_(factor)
        layer.o_proj.input_max.div_(factor)


def mlp_rows(layer: Any) -> int:
    """Return the number of rows of a fused Linear before those of the queries: those of the MLP of a parallel block."""
    return layer.in_split[0] if hasattr(layer, "in_split") else 0


def _separate_biases(layer: Any) -> bool:
    """Return whether the biases are the parameters q_bias and v_bias beside a fused Linear."""
    return getattr(layer, "q_bias", None) is not None


def _double(parameter: Tensor) -> Tensor:
    """Return a parameter in float64; on the CPU, because some devices do not have float64."""
    return (parameter if parameter.is_meta else parameter.cpu()).detach().double()


def read_qkv(layer: Any, head_dim: int) -> list[Tensor]:
    """Read the weights of queries, keys and values in float64, on the CPU or on the meta device.

    Args:
        layer: a plain attention layer.
        head_dim: width of a head.

    Returns:
        q, k and v, (H, d, dim + 1) each. The last column is the bias; it is 0 where the layer has none.
    """
    parts = []
    for linear in input_projections(layer):
        weight = _double(linear.weight)
        bias = weight.new_zeros(len(weight)) if linear.bias is None else _double(linear.bias)
        parts.append(torch.cat([weight, bias[:, None]], dim=1))  # (rows, dim + 1)
    if len(parts) == 1:
        parts = list(parts[0][mlp_rows(layer) :].chunk(3))
    if _separate_biases(layer):
        for part, bias in ((parts[0], layer.q_bias), (parts[2], layer.v_bias)):
            part[:, -1] = _double(bias)
    return [part.unflatten(0, (-1, head_dim)) for part in parts]


@torch.no_grad()
def write_qkv(layer: Any, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Replace the weights of queries, keys and values, in place. The number of queries may change.

    Args:
        layer: an attention layer.
        q, k, v: weights with the bias as the last column, (H, d, dim + 1) each, as `read_qkv` returns them. A bias that
            the layer does not have must be 0, except for the keys, whose bias does not change a softmax.
    """
    parts = [part.flatten(0, 1) for part in (q, k, v)]
    linears = input_projections(layer)
    if len(linears) == 1:
        _replace_rows(linears[0], torch.cat(parts), keep=mlp_rows(layer))
    else:
        for linear, part in zip(linears, parts, strict=True):
            _replace_rows(linear, part)
    if _separate_biases(layer):
        for name, part in (("q_bias", parts[0]), ("v_bias", parts[2])):
            old = getattr(layer, name)
            setattr(layer, name, nn.Parameter(part[:, -1].to(old), requires_grad=old.requires_grad))


def _replace_rows(linear: nn.Linear, rows: Tensor, keep: int = 0) -> None:
    """Give a Linear new weights and a new bias, (rows, dim + 1), after its first `keep` rows, which do not change."""
    weight, bias = linear.weight, linear.bias
    new_weight = torch.cat([weight[:keep], rows[:, :-1].to(weight)])
    linear.weight = nn.Parameter(new_weight.contiguous(), requires_grad=weight.requires_grad)
    linear.out_features = len(new_weight)
    if bias is not None:
        new_bias = torch.cat([bias[:keep], rows[:, -1].to(bias)])
        linear.bias = nn.Parameter(new_bias.contiguous(), requires_grad=bias.requires_grad)
