"""Which implementations a call may use: our kernels, our operators, or only those of PyTorch."""

import functools
import importlib.util

import torch
from torch import Tensor, nn

__all__ = ["gpu_runs_triton", "has_autocast", "is_eager", "on_gpu", "only_builtin_operators"]


def on_gpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on a GPU, where the Triton kernels run."""
    return tensor.device.type == "cuda"


@torch.compiler.assume_constant_result
def has_autocast(device_type: str) -> bool:
    """Return whether a type of device, such as 'cuda', has autocast. torch 2.9's compiler cannot trace the question."""
    return torch.amp.is_autocast_available(device_type)


@torch.compiler.assume_constant_result
def gpu_runs_triton(device_index: int) -> bool:
    """Return whether our Triton kernels support a GPU: an NVIDIA GPU of the Ampere generation or later, with Triton."""
    return _gpu_runs_triton(device_index)


@functools.cache
def _gpu_runs_triton(device_index: int) -> bool:
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device_index) >= (8, 0)


def is_eager(tensor: Tensor) -> bool:
    """Return whether a kernel can be called directly on a tensor.

    A compiler, a counter of operators, a batch of gradients (`is_grads_batched`) or a subclass of Tensor sees only
    operators.
    """
    is_plain = type(tensor) is Tensor or type(tensor) is nn.Parameter
    if not is_plain or torch.compiler.is_compiling() or torch._C._functorch.is_legacy_batchedtensor(tensor):
        return False
    return torch._C._len_torch_dispatch_stack() == 0 and torch._ops._len_torch_dispatch_stack_pre_dispatch() == 0


def only_builtin_operators() -> bool:
    """Return whether only PyTorch's own operators may run: in tracing, export, torch.func and forward-mode AD."""
    functorch: bool = torch._C._are_functorch_transforms_active()
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return functorch or forward_mode or torch.jit.is_tracing() or torch.compiler.is_exporting()
