"""Find how many accumulation steps an update needs to fit into the memory of the GPU."""

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from ..console import log0
from ..errors import InputError

__all__ = ["find_accum_steps"]

COPIES = 3  # of the weights, in addition to them: AdamW's two moments, and the buckets of the gradient exchange


def find_accum_steps(model: nn.Module, shape: tuple[int, ...], accum_steps: int, accelerator: Accelerator) -> int:
    """Double the accumulation steps until an update fits into the memory of every process.

    Each attempt is a forward and a backward pass on black images. The number of images per update does not change.

    Args:
        model: network to train; it is not changed.
        shape: (B, C, H, W) of an update on one process.
        accum_steps: number of steps to start from.
        accelerator: accelerator of the run.

    Raises:
        InputError: not even a single image fits.
    """
    while not _fits(model, (-(-shape[0] // accum_steps), *shape[1:]), accelerator):
        clear_device_cache(garbage_collection=True)
        if accum_steps >= shape[0]:
            raise InputError(
                f"not even one image of {shape[1:]} fits into the memory: pass `grad_checkpointing=True` or use a "
                "smaller model"
            )
        accum_steps = min(2 * accum_steps, shape[0])
    accum_steps = int(accelerator.gather(torch.tensor([accum_steps], device=accelerator.device)).max())
    if accum_steps > 1:
        images = -(-shape[0] // accum_steps)
        log0(f"memory: {accum_steps} accumulation steps of {images} images per update and process")
    return accum_steps


def _fits(model: nn.Module, shape: tuple[int, ...], accelerator: Accelerator) -> bool:
    """Return whether a forward and a backward pass fit, beside the optimizer's copies of the weights."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    reserved, size = [], sum(p.numel() for p in model.parameters() if p.requires_grad)
    try:
        reserved.append(torch.empty(COPIES * size, device=accelerator.device))
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
