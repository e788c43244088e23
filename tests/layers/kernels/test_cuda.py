"""The CUDA kernel without a GPU: results in Triton's interpreter (interpreted_cuda.py) and compilation for two GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from formula import branch_dims, inputs

triton = pytest.importorskip("triton", reason="triton is not installed")

# Triton warns that its default of floating-point fusion will change.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

# Shared memory that a program can use on GPUs of compute capability 8.6 and 8.9, which have the least.
SHARED_MEMORY = 99 * 1024
BFLOAT16_TENSORS = {"q", "k", "v", "lam", "grad", "out", "grad_q", "grad_k", "grad_v", "grad_lam"}


def test_the_interpreted_kernel_equals_the_formula():
    # Triton decides at its import whether it interprets kernels, so this needs a separate process.
    tests = Path(__file__).with_name("interpreted_cuda.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 passed" in done.stdout


@pytest.mark.parametrize("capability", [86, 90])
@pytest.mark.parametrize("norm", [None, "*bf16"])
@pytest.mark.parametrize(("dims", "tokens"), [((48, 16), 197), ((64, None), 577), ((96, 32), 577), ((128, None), 577)])
def test_it_compiles_for_ampere_and_hopper(capability, dims, tokens, norm):
    from diffvit_timm.layers.kernels import cuda as kernel

    q, _, v, *_ = inputs(batch=1, heads=1, tokens=tokens, dims=dims)
    widths = kernel._width_constants(q, v, branch_dims(dims))
    forward = (kernel._forward_kernel, kernel.forward_blocks(tokens, widths["DV_PAD"]))
    gradients = [
        (kernel._query_gradient_kernel, kernel.blocks_for_width(widths["DV_PAD"])),
        (kernel._key_gradient_kernel, kernel.blocks_for_width(widths["DV_PAD"], kernel.KEY_GRADIENT_BLOCKS)),
    ]
    for function, blocks in [forward] if norm else [forward, *gradients]:
        constants = {**widths, **blocks}
        if norm is None and "norm_weight" in function.arg_names:
            constants["norm_weight"] = None
        options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
        types = dict.fromkeys(function.arg_names, "i32")
        types |= dict.fromkeys(BFLOAT16_TENSORS & types.keys(), "*bf16")
        types |= {name: "fp32" for name in ("scale_log2", "scale", "eps") if name in types}
        types |= {"row_stats": "*fp32"} if "row_stats" in types else {}
        types |= {"norm_weight": norm} if "norm_weight" in types else {}
        types |= dict.fromkeys(constants, "constexpr")
        # A launch finds out which pointers and strides are multiples of 16, because Triton loads ahead only from those.
        # Those of a projection are multiples of 16.
        aligned = [n for n, kind in types.items() if kind.startswith("*") or n.startswith("stride_")]
        divisible = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        source = triton.compiler.ASTSource(function, types, constants, divisible)
        target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=options)
        if capability < 90:
            assert compiled.metadata.shared <= SHARED_MEMORY
