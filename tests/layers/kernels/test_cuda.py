"""The CUDA kernel: its numbers in Triton's interpreter (interpreted_cuda.py), its compilation for GPUs not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from formula import branch_dims, inputs

triton = pytest.importorskip("triton", reason="triton is not installed")

# Of its default of floating-point fusion, which is to change.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

SHARED_MEMORY = 99 * 1024  # of a program, on the GPUs of compute capability 8.6 and 8.9, which have the least
WITHOUT_A_STRIDE_OF = {"q", "k", "v", "lam", "grad", "out", "grad_q", "grad_k", "grad_v", "grad_lam"}


def test_its_numbers_in_the_interpreter():
    # triton decides as it is imported whether it interprets, so this needs a process of its own
    tests = Path(__file__).with_name("interpreted_cuda.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 passed" in done.stdout


@pytest.mark.parametrize("capability", [86, 90])
@pytest.mark.parametrize("norm", [None, "*bf16"])
@pytest.mark.parametrize(("dims", "tokens"), [((48, 16), 197), ((64, None), 577), ((96, 32), 577), ((128, None), 577)])
def test_it_compiles_for_gpus_that_are_not_here(capability, dims, tokens, norm):
    from diffvit_timm.layers.kernels import cuda as kernel

    q, _, v, *_ = inputs(batch=1, heads=1, tokens=tokens, dims=dims)
    widths = kernel._widths(q, v, branch_dims(dims))
    forward = (kernel._forward_kernel, kernel.forward_tile(tokens, widths["PV"]))
    gradients = [
        (kernel._query_gradient_kernel, kernel.blocks(widths["PV"])),
        (kernel._key_gradient_kernel, kernel.blocks(widths["PV"], kernel.KEY_GRADIENT_BLOCKS)),
    ]
    for function, tile in [forward] if norm else [forward, *gradients]:
        constants = {**widths, **tile}
        if norm is None and "norm_weight" in function.arg_names:
            constants["norm_weight"] = None
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
        types = dict.fromkeys(function.arg_names, "i32")
        types |= dict.fromkeys(WITHOUT_A_STRIDE_OF & types.keys(), "*bf16")
        types |= {name: "fp32" for name in ("scale", "chain", "eps") if name in types}
        types |= {"rows": "*fp32"} if "rows" in types else {}
        types |= {"norm_weight": norm} if "norm_weight" in types else {}
        types |= dict.fromkeys(constants, "constexpr")
        # what a launch finds out by itself, and loads ahead by; the strides are those of a projection
        whole = [n for n, kind in types.items() if kind.startswith("*") or n.endswith(("_batch", "_head", "_row"))]
        divisible = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in whole}
        source = triton.compiler.ASTSource(function, types, constants, divisible)
        target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=options)
        if capability < 90:
            assert compiled.metadata.shared <= SHARED_MEMORY
