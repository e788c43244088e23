"""The accelerator of a configuration."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, DistributedType

from ..errors import InputError
from .config import TrainConfig

__all__ = ["make_accelerator"]

# Of these the second version of FSDP alone leaves the loop and its checkpoints to us.
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def make_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """The accelerator of a configuration; trackers that write files write below `output`.

    Raises:
        InputError: a tracker that is not installed, fp16 without a GPU, a launch file that shards in another way than
            FSDP2 does, with an average of the weights, or where accelerate would not.
    """
    _check_options(config)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or else each rank without a GPU takes itself for the only one
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_dir=str(output),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.data_seed),
    )
    _check_launch_file(accelerator, config)
    if accelerator.device.type == "cpu":
        # accelerate launch leaves a process one thread: 10 instead of 27 images/s on 2 cores
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))  # on this machine
        torch.set_num_threads(max(1, cores // beside))
    return accelerator


def _check_options(config: TrainConfig) -> None:
    """Refuse what is not on this machine."""
    available = [str(tracker) for tracker in get_available_trackers()]
    for tracker in config.trackers:
        if tracker not in available:
            choices = ", ".join(available) or "none"
            raise InputError(f"--trackers {tracker} is not installed: pip install it (installed: {choices})")
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("--precision fp16 needs a GPU: use bf16 or no here")


def _check_launch_file(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuse to shard in a way that is not supported, or that accelerate would leave out."""
    if accelerator.distributed_type in SHARDED and not accelerator.is_fsdp2:
        raise InputError(
            f"the launch file asks for {accelerator.distributed_type.value}, which shards the model in a way that is "
            "not supported here: use recipes/configs/accelerate/fsdp2.yaml"
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not accelerator.is_fsdp2:
        raise InputError(
            "the launch file asks for FSDP, which accelerate does with several GPUs alone, and would leave out here: "
            "use recipes/configs/accelerate/ddp.yaml"
        )
    if accelerator.is_fsdp2 and config.ema:
        raise InputError(
            f"--ema {config.ema} averages whole weights, and the launch file shards them: leave it out, or use "
            "recipes/configs/accelerate/ddp.yaml"
        )
