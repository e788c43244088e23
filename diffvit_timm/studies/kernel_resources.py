"""Registers, spills, shared memory and occupancy of the CUDA kernels, from a compiler and without a GPU."""

import contextlib
import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..layers.kernels import cuda_kernels
from ..layers.kernels.cuda_blocks import kernel_constants
from ..layers.kernels.layout import BranchDims

__all__ = ["ARCHITECTURES", "KERNELS", "Resources", "kernel_resources"]

KERNELS = {
    "forward": cuda_kernels.forward_kernel,
    "gradient of queries": cuda_kernels.query_gradient_kernel,
    "gradient of keys": cuda_kernels.key_gradient_kernel,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The limits of a multiprocessor, which its programs share.

    Attributes:
        capability: compute capability, times 10.
        name: GPUs of this capability.
        shared_memory: bytes of shared memory.
        warps: largest number of warps.
    """

    capability: int
    name: str
    shared_memory: int
    warps: int


# CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
ARCHITECTURES = [
    Architecture(80, "A100", 164 << 10, 64),
    Architecture(86, "RTX 30, A10", 100 << 10, 48),
    Architecture(89, "RTX 40, L4, L40", 100 << 10, 48),
    Architecture(90, "H100, H200", 228 << 10, 64),
    Architecture(120, "RTX 50", 100 << 10, 48),
]
REGISTERS = 64 << 10  # of a multiprocessor, in all of these architectures
RESERVED_SHARED_MEMORY = 1 << 10  # by CUDA, for each program

HALF = {"q", "k", "v", "grad", "out", "out2", "grad_q", "grad_k", "grad_v", "norm_weight"}
FLOAT32 = {"lam", "lse", "delta", "grad_lam"}
SCALARS = {"scale_log2", "scale", "eps"}


@dataclasses.dataclass(frozen=True)
class Resources:
    """The resources that a compiled kernel takes.

    Attributes:
        registers: registers of a thread.
        spilled: bytes of a thread that did not fit into registers.
        shared_memory: bytes of a program.
        warps: warps of a program.
        programs: programs that run on a multiprocessor at a time.
        instructions: instructions of a thread in the loop over blocks, times the threads, per pair of logits.
    """

    registers: int
    spilled: int
    shared_memory: int
    warps: int
    programs: int
    instructions: float


def kernel_resources(
    kernel: str, branch_dims: BranchDims, head_width: int, tokens: int, architecture: Architecture, norm: bool = False
) -> Resources:
    """Compile a kernel in bfloat16 with its own block sizes for an architecture.

    Args:
        kernel: key of KERNELS.
        branch_dims: widths of the two branches of a head; None: version 2.
        head_width: width of a head.
        tokens: number of tokens, on which the block sizes depend.
        architecture: one of ARCHITECTURES.
        norm: whether the forward kernel applies the norm of the head; otherwise it keeps what the backward pass needs.
    """
    q_width = head_width if branch_dims else 2 * head_width
    forward, queries, keys = kernel_constants(q_width, head_width, branch_dims, tokens, architecture.capability)
    sizes = dict(zip(KERNELS, (forward, queries, keys), strict=True))[kernel].copy()
    function = KERNELS[kernel]
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in sizes}
    absent = ({"out2", "lse"} if norm else {"norm_weight"}) if kernel == "forward" else set()
    constants = {**sizes, **dict.fromkeys(absent)}
    types = {name: _type(name) for name in function.arg_names} | dict.fromkeys(constants, "constexpr")
    # A launch finds out which pointers and strides are multiples of 16, because Triton loads ahead only from those.
    # Those of a projection are multiples of 16.
    unknown = cuda_kernels.RUNTIME_VALUES
    aligned = [n for n, kind in types.items() if kind.startswith("*") or (n.startswith("stride_") and n not in unknown)]
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    compiled = triton.compile(
        ASTSource(function, types, constants, attributes),
        target=GPUTarget("cuda", architecture.capability, 32),
        options=options,
    )
    warps, shared = options["num_warps"], compiled.metadata.shared
    with _dumped(compiled.asm["cubin"]) as dump:
        registers, spilled = _registers(dump("--dump-resource-usage"))
        in_loop = _longest_loop(dump("--dump-sass"))
    pairs = sizes["BLOCK_Q"] * sizes["BLOCK_K"]
    return Resources(
        registers,
        spilled,
        shared,
        warps,
        _programs(registers, shared, warps, architecture),
        in_loop * 32 * warps / pairs,
    )


def _type(name: str) -> str:
    """Return the type of an argument of a kernel in Triton's notation."""
    if name in HALF:
        return "*bf16"
    if name in FLOAT32:
        return "*fp32"
    return "fp32" if name in SCALARS else "i32"


@contextlib.contextmanager
def _dumped(binary: bytes) -> Iterator[Callable[[str], str]]:
    """Yield a function that returns what cuobjdump prints about a compiled kernel with an option."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
        yield (
            lambda option: subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
        )


def _registers(text: str) -> tuple[int, int]:
    """Return the registers and the stack bytes of a thread, which hold what did not fit into registers."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None
    return int(found[1]), int(found[2])


def _longest_loop(text: str) -> int:
    """Return the number of instructions of the longest loop without an inner loop, from a disassembly."""
    addresses = [int(address, 16) for address in re.findall(r"/\*([0-9a-f]{4,})\*/\s+[@A-Z]", text)]
    jumps = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?BRA[.\w]* (?:!?U?P\d+, )?(?:`\()?0x([0-9a-f]+)", text)
    loops = [(int(target, 16), int(at, 16)) for at, target in jumps if int(target, 16) < int(at, 16)]
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return max((sum(a <= address <= b for address in addresses) for a, b in inner), default=0)


def _programs(registers: int, shared_memory: int, warps: int, architecture: Architecture) -> int:
    """Return how many programs run on a multiprocessor at a time. Registers are given out in units of 8 per thread."""
    by_registers = REGISTERS // (-(-registers // 8) * 8 * 32 * warps)
    by_shared_memory = architecture.shared_memory // (shared_memory + RESERVED_SHARED_MEMORY)
    return min(by_registers, by_shared_memory, architecture.warps // warps)
