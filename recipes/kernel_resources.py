"""Compile the CUDA kernels for several GPUs, without a GPU, and print their registers, shared memory and occupancy.

A program is a block of threads; the columns programs and warps say how many run on a multiprocessor at a time. A pair
is one logit of each branch.

python recipes/kernel_resources.py
"""

from diffvit_timm.studies.kernel_resources import ARCHITECTURES, KERNELS, kernel_resources

SHAPES = {"48 + 16": (48, 16), "version 2, 64": None, "96 + 32": (96, 32), "version 2, 128": None}


def main() -> None:
    print(
        "| GPU | channels | tokens | kernel | registers | spilled bytes | shared memory, KiB | programs | warps | "
        "instructions per pair |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for architecture in ARCHITECTURES:
        for name, dims in SHAPES.items():
            width = 64 if "128" not in name and "96" not in name else 128
            for kernel in KERNELS:
                for tokens in (197, 577) if kernel == "forward" else (197,):
                    found = kernel_resources(kernel, dims, width, tokens, architecture)
                    sizes = f"{found.registers} | {found.spilled} | {found.shared_memory / 1024:.0f}"
                    residents = f"{found.programs} | {found.programs * found.warps}"
                    row = f"{architecture.name} | {name} | {tokens} | {kernel} | {sizes} | {residents}"
                    print(f"| {row} | {found.instructions:.1f} |")


if __name__ == "__main__":
    main()
