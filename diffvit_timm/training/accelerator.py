"""Create the accelerator of a configuration."""

import datetime
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedType, broadcast
from torch import nn

from ..errors import InputError
from .run_config import RunConfig
from .trackers import check_trackers

__all__ = ["make_accelerator", "run_on_main", "share_weights"]

DONE = "diffvit_timm/run_on_main"  # key in the store of the processes
LONGEST_WAIT = datetime.timedelta(days=1)

# Of the ways to shard a model, only FSDP2 leaves the loop and its checkpoints to the trainer.
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def make_accelerator(config: RunConfig, output: Path, ema: float = 0.0) -> Accelerator:
    """Create the accelerator of a run.

    Args:
        config: precision, trackers and seed of the run.
        output: folder below which trackers write their files.
        ema: decay of the moving average of the weights, which a sharded model does not support.

    Raises:
        InputError: a tracker that is not installed, fp16 without a GPU, or a launch file that shards the model in an
            unsupported way.
    """
    _check_options(config)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != config.precision:
        AcceleratorState._reset_state()  # otherwise accelerate refuses a training of another precision in one process
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise each rank without a GPU takes itself for the only one
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_dir=str(output),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.data_seed),
    )
    _check_launch_file(accelerator, ema)
    if accelerator.device.type == "cpu" and not _user_set_threads():
        # accelerate launch gives a process one thread: 10 instead of 27 images/s on 2 cores
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))  # on this machine
        torch.set_num_threads(max(1, cores // processes))
    return accelerator


@torch.no_grad()
def share_weights(accelerator: Accelerator, model: nn.Module) -> None:
    """Give the model of every process the weights and buffers of the first process.

    Each process converts by itself, and processors differ in the last bits. A sharded model would put together parts of
    different conversions.
    """
    if accelerator.num_processes > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(broadcast(tensor.detach().to(accelerator.device).contiguous()))


def run_on_main(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """Run a function in the main process while the others wait, longer than a collective of NCCL would (10 minutes).

    Args:
        accelerator: accelerator from `make_accelerator`.
        work: function without collectives. If it raises, the launcher ends the other processes.
    """
    if accelerator.is_main_process:
        work()
    if accelerator.num_processes > 1:
        store = torch.distributed.distributed_c10d._get_default_store()
        if accelerator.is_main_process:
            store.set(DONE, "")
        store.wait([DONE], LONGEST_WAIT)


def _user_set_threads() -> bool:
    """Return whether the user set OMP_NUM_THREADS, which torch then follows.

    accelerate launch and torchrun set it to 1 if it is not set, so their own environment decides: the parent's.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        return False
    if "LOCAL_RANK" not in os.environ and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return True  # not started by a launcher
    try:
        parent = psutil.Process().parent()
        return parent is not None and "OMP_NUM_THREADS" in parent.environ()
    except psutil.Error:
        return False


def _check_options(config: RunConfig) -> None:
    """Refuse trackers and precisions that this machine does not have."""
    check_trackers(config.trackers)
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("`precision=fp16` needs a GPU: use bf16 or no on this machine")


def _check_launch_file(accelerator: Accelerator, ema: float) -> None:
    """Refuse sharding that is not supported, or that accelerate would silently ignore."""
    if accelerator.distributed_type in SHARDED and not accelerator.is_fsdp2:
        raise InputError(
            f"the launch file asks for {accelerator.distributed_type.value}, which shards the model in a way that is "
            "not supported here: use recipes/configs/accelerate/fsdp2.yaml"
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not accelerator.is_fsdp2:
        raise InputError(
            "the launch file asks for FSDP, which accelerate only uses with several GPUs and would ignore here: "
            "use recipes/configs/accelerate/ddp.yaml"
        )
    if accelerator.is_fsdp2 and ema:
        raise InputError(
            f"`ema={ema}` averages whole weights, but the launch file shards them: leave it out, or use "
            "recipes/configs/accelerate/ddp.yaml"
        )
