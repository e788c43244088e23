"""How many passes an update has to be cut into, for the memory that there is."""

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from ..console import say
from ..errors import InputError

__all__ = ["passes_that_fit"]

COPIES = 3  # of the weights: AdamW's two moments, and the buckets in which processes exchange gradients


def passes_that_fit(model: nn.Module, shape: tuple[int, ...], passes: int, accelerator: Accelerator) -> int:
    """The number of passes, doubled from `passes` on, with which an update fits the memory of every process.

    Found by a forward and a backward pass on black images before the training; the images of an update stay as many.

    Args:
        model: left as it is.
        shape: (B, C, H, W) of an update on one process.

    Raises:
        InputError: not even single images fit.
    """
    while not _fits(model, (-(-shape[0] // passes), *shape[1:]), accelerator):
        clear_device_cache(garbage_collection=True)
        if passes >= shape[0]:
            raise InputError(
                f"not one image of {shape[1:]} fits the memory: pass --grad-checkpointing or a smaller model"
            )
        passes = min(2 * passes, shape[0])
    passes = int(accelerator.gather(torch.tensor([passes], device=accelerator.device)).max())
    if passes > 1:
        say(f"memory: {passes} passes of {-(-shape[0] // passes)} images an update and process")
    return passes


def _fits(model: nn.Module, shape: tuple[int, ...], accelerator: Accelerator) -> bool:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    reserve, size = [], sum(p.numel() for p in model.parameters() if p.requires_grad)
    try:
        reserve.append(torch.empty(COPIES * size, device=accelerator.device))
        with accelerator.autocast():
            loss = model.train()(torch.zeros(shape, device=accelerator.device)).float().logsumexp(-1).mean()
        loss.backward()
    except Exception as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return True
