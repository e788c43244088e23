"""The CUDA kernels without a GPU: results in Triton's interpreter, and compilation for four GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from formula import branch_dims

triton = pytest.importorskip("triton", reason="triton is not installed")

# Triton warns that its default of floating-point fusion will change.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")


@pytest.mark.parametrize(("file", "passed"), [("interpreted_cuda.py", 51), ("interpreted_packed.py", 34)])
def test_the_interpreted_kernels_equal_the_formulas(file, passed):
    # Triton decides at its import whether it interprets kernels, so this needs a separate process.
    tests = Path(__file__).with_name(file)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(tests)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{passed} passed" in done.stdout


def test_only_tensors_that_the_kernels_cannot_read_are_copied():
    from diffvit_timm.layers.kernels.cuda import is_readable

    projection = torch.empty(2, 17, 3, 4, 16, device="meta")  # (B, N, 3, H, d)
    q = projection[:, :, 0].transpose(1, 2)  # (B, H, N, d)
    far = torch.empty_strided((1, 1, 17, 16), (1, 1, 2**27, 1), device="meta")
    assert [is_readable(t) for t in (q, far, q.transpose(2, 3))] == [True, False, False]


@pytest.mark.parametrize(
    ("capability", "dims"),
    [(80, (48, 16)), (80, (96, 32)), (89, (64, None)), (89, (128, None)), (120, (128, None))]
    + [(90, dims) for dims in ((48, 16), (64, None), (96, 32), (128, None))],
)
def test_the_kernels_fit_on_a_multiprocessor_of_each_architecture(capability, dims):
    from diffvit_timm.studies.kernel_resources import ARCHITECTURES, KERNELS, kernel_resources

    (architecture,) = (known for known in ARCHITECTURES if known.capability == capability)
    width = sum(dims) if branch_dims(dims) else dims[0]
    for kernel in KERNELS:
        for norm in (False, True) if kernel == "forward" else (False,):
            found = kernel_resources(kernel, branch_dims(dims), width, 197, architecture, norm)
            assert found.programs >= 1
            assert found.spilled <= (128 if width <= 64 else 512)
