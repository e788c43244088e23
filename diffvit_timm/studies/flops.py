"""FLOPs of a network by torch's counter, with all of its attention."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import get_model_input_config
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .timing import explicit_maps

__all__ = ["forward_flops"]


def forward_flops(model: Any, image_size: int | tuple[int, int] | None = None) -> int:
    """Count the FLOPs of a forward pass for one image. A multiplication and an addition count as two.

    Differential attention counts as its definition: the logits of both maps, and one product of their difference with
    the values. Fused kernels that compute more, such as products with zeros, do not count as more.

    Args:
        model: a model from timm.create_model; it is not changed.
        image_size: height and width of the image in pixels; None: those that the model expects.
    """
    channels, *expected = get_model_input_config(model)["input_size"]
    sides = expected if image_size is None else to_2tuple(image_size)
    image = torch.zeros(1, channels, *sides, device=next(model.parameters()).device)
    # Without gradients, because the counter fails on a parameter that is expanded.
    counted = copy.deepcopy(model).eval().requires_grad_(False)
    # With explicit attention maps, whose products the counter knows. The formulas are for fused attention that no flag
    # of its layer turns off.
    with explicit_maps(counted), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        counted(image)
    return counter.get_total_flops()


def _attend_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Return the FLOPs of our operator from the shapes of its arguments."""
    batch, heads, queries, width = q  # of both branches together
    return 2 * batch * heads * queries * k[-2] * (width + v[-1])


def _sdpa_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


_FORMULAS = {
    torch.ops.diffvit_timm.attend: _attend_flops,
    # The counter knows the operators of GPUs only.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flops,
}
