"""Mixed precision by the names that the options have."""

import torch

__all__ = ["autocast"]

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the autocast of a precision, no, bf16 or fp16, on a device, such as 'cuda:1'."""
    return torch.autocast(torch.device(device).type, DTYPES[precision], enabled=precision != "no")
