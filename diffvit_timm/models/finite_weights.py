"""Refuse networks whose weights are NaN or infinite: a conversion or a prediction would only pass them on."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["require_finite"]

# Clipping limits in Gemma 4's layers; they may be infinite.
CLIPPING_LIMITS = ("input_min", "input_max", "output_min", "output_max")


def require_finite(state_dict: Mapping[str, Tensor]) -> None:
    """Check that the tensors of a network have no NaN and no infinite values.

    Raises:
        ValueError: the name of the first tensor that has some, and their number.
    """
    for name, tensor in state_dict.items():
        if tensor.is_meta or not tensor.is_floating_point() or name.endswith(CLIPPING_LIMITS):
            continue
        # A sum is the fastest reduction, and is finite only if all values are. It may also overflow.
        if not tensor.sum(dtype=torch.float32).isfinite() and (wrong := int((~tensor.isfinite()).sum())):
            raise ValueError(f"the tensor {name} has {wrong:,} values that are NaN or infinite: the weights are broken")
