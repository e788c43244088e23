"""Check and time the kernels, the networks and the trainer on a GPU, and write a report.

    diffvit benchmark gpu --output h100                              # every stage, at most 7 minutes each
    diffvit benchmark gpu --output h100 --stages check report        # only whether the kernels are right
    diffvit benchmark gpu --output h100 --minutes 1 --row-seconds 1  # a short look
    diffvit benchmark gpu --output trial --device cpu --models diffvit_micro_patch8_32 --img-size 32 --batch-sizes 2 \\
        --precisions bf16 --tokens 17 --check-tokens 17 --row-seconds 0.1

The folder gets one JSON file per stage and report.md. A call that was interrupted can be repeated: rows that are
finished are kept. A failed check ends the program with exit code 1. No setting of the GPU is changed.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from ...console import log0
from ...errors import InputError
from ...files import require_writable
from ...options import CheckedOptions
from ...studies.gpu_report.settings import Settings


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    output: Path
    """Folder of the report. Rows of an earlier call are kept if the GPU and the versions are the same."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Settings)


def main(options: Options) -> dict:
    # Not above: --help does not wait for them.
    from ...output import claim_folder
    from ...studies.gpu_report.program import check_settings, run_stages

    if options.settings.stages != ("report",):
        check_settings(options.settings)
    folder = options.output.expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"`output={folder}` is a file: choose a folder")
    with claim_folder(folder):
        require_writable(folder, f"`output={folder}`")
        result = run_stages(options.settings, folder)
    if result["failed_checks"]:
        for line in result["failed_checks"]:
            log0(f"failed: {line}")
        sys.exit(1)
    return {"output": str(folder), **result}
