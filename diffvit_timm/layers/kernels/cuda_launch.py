"""Launches of Triton kernels that remember what Triton has compiled.

At every launch Triton looks up the compiled kernel by the types, values and alignments of all arguments. In Python this
takes longer than the launch itself, and with a small batch the GPU waits for it.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from triton.compiler import CompiledKernel

__all__ = ["Kernel"]

ALIGNMENT = 16  # bytes; Triton compiles a kernel again for a pointer that is not a multiple of it


class Kernel:
    """A Triton kernel with its constants.

    Args:
        function: kernel, whose constants are its last parameters.
        settings: constants of the kernel, and options of the compiler such as num_warps.
    """

    def __init__(self, function: Any, settings: dict[str, int]) -> None:
        self.function = function
        self.settings = settings
        self.constants = [settings[name] for name in function.arg_names if name in settings]
        self.compiled: dict[tuple[Any, ...], CompiledKernel] = {}

    def launch(self, programs: int, tensors: Sequence[Tensor | None], numbers: tuple[float, ...] = ()) -> None:
        """Launch the kernel on the current device.

        Args:
            programs: number of programs.
            tensors: first arguments of the kernel. The first one is not None, and is on the current device.
            numbers: the arguments between the tensors and the constants.
        """
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        first: Any = tensors[0]
        # Triton compiles a kernel again for other types, and for numbers and pointers that are multiples of 16 or not.
        # The key has the numbers themselves, and nearly all pointers are aligned.
        key = (first.get_device(), numbers, *[None if tensor is None else tensor.dtype for tensor in tensors])
        is_aligned = not any(pointer % ALIGNMENT for pointer in pointers if pointer is not None)
        compiled = self.compiled.get(key) if is_aligned else None
        if compiled is not None:
            compiled[programs, 1, 1](*pointers, *numbers, *self.constants)
            return
        compiled = self.function[(programs,)](*tensors, *numbers, **self.settings)
        if is_aligned and isinstance(compiled, CompiledKernel):  # Triton's interpreter returns None
            self.compiled[key] = compiled
