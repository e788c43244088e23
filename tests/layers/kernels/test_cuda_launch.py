"""Launches of compiled kernels that are kept, without a GPU: Triton's part is a stand-in that records its calls."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from diffvit_timm.layers.kernels import cuda_launch
from diffvit_timm.layers.kernels.cuda_launch import Kernel


class Compiled:
    """Stands for Triton's compiled kernel. It records what it is launched with."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda *args: self.launches.append((grid, args))


class Function:
    """Stands for a kernel of Triton, which returns what it has compiled."""

    arg_names = ("x", "y", "n", "WIDTH", "BLOCK")

    def __init__(self):
        self.launches, self.returned = [], []

    def __getitem__(self, grid):
        def launch(*args, **settings):
            self.launches.append((grid, args, settings))
            self.returned.append(Compiled())
            return self.returned[-1]

        return launch


ON_ANOTHER_GPU = SimpleNamespace(get_device=lambda: 1, data_ptr=lambda: 64, dtype=torch.float32)
SETTINGS = {"BLOCK": 32, "WIDTH": 48, "num_warps": 4}


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(cuda_launch, "CompiledKernel", Compiled)
    return Kernel(Function(), SETTINGS)


def test_the_second_launch_does_not_ask_triton_and_has_the_arguments_of_the_kernel_in_their_order(kernel):
    first, second = torch.empty(16), torch.empty(16)
    kernel.launch(3, (first, None), (7,))
    kernel.launch(5, (second, None), (7,))
    assert kernel.function.launches == [((3,), (first, None, 7), SETTINGS)]
    assert kernel.function.returned[0].launches == [((5, 1, 1), (second.data_ptr(), None, 7, 48, 32))]


@pytest.mark.parametrize(
    ("tensors", "numbers"),
    [
        ((torch.empty(16), None), (8,)),
        ((torch.empty(16, dtype=torch.float16), None), (7,)),
        ((torch.empty(16), torch.empty(16)), (7,)),
        ((ON_ANOTHER_GPU, None), (7,)),
    ],
    ids=["number", "type", "presence", "device"],
)
def test_another_number_type_or_device_asks_triton(kernel, tensors, numbers):
    kernel.launch(3, (torch.empty(16), None), (7,))
    kernel.launch(3, tensors, numbers)
    kernel.launch(3, tensors, numbers)
    assert len(kernel.function.launches) == 2
    assert [len(compiled.launches) for compiled in kernel.function.returned] == [0, 1]


def test_a_pointer_that_is_not_aligned_always_asks_triton(kernel):
    aligned, odd = torch.empty(16), torch.empty(16)[1:]
    for _ in range(2):
        kernel.launch(3, (aligned, odd), (7,))
    assert len(kernel.function.launches) == 2
    kernel.launch(3, (aligned, aligned), (7,))  # the compiled kernel of the odd pointer is not kept for it
    assert len(kernel.function.launches) == 3


def test_nothing_is_kept_if_triton_returns_no_compiled_kernel():
    kernel = Kernel(Function(), SETTINGS)  # what Function returns is not an instance of Triton's class
    for _ in range(2):
        kernel.launch(3, (torch.empty(16), None), (7,))
    assert len(kernel.function.launches) == 2
