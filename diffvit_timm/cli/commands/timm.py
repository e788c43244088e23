"""Run one of timm's scripts with the models of this package.

    diffvit timm validate.py --model diffvit_tiny_patch16.deit_in1k --pretrained --data-dir FOLDER
    diffvit timm benchmark.py --model diffvit_small_patch16 --bench infer

The scripts are in timm's repository, https://github.com/huggingface/pytorch-image-models. The words after SCRIPT go to
the script. bulk_runner.py starts a process per model, and its -m lets each process use this command too:

    diffvit timm bulk_runner.py --model-list 'diffvit_*' --sort-key top1 -m yes diffvit_timm timm validate.py ...
"""

import runpy
import sys
from pathlib import Path

from ...errors import InputError
from ..console import one_line_errors
from ..env_file import read_env_file

USAGE = """
positional arguments:
  SCRIPT       path of the script (required)
  ARGS         options of the script; diffvit timm SCRIPT --help lists them
"""


def main(argv: list[str]) -> None:
    """Run a script as `python SCRIPT ARGS` does, after the models are registered.

    Args:
        argv: path of the script, and its arguments.

    Raises:
        SystemExit: the help was asked for (0), or the path is missing or is not a file (2); also what the script
            raises.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: diffvit timm SCRIPT [ARGS ...]\n\n{(__doc__ or '').strip()}\n{USAGE}", end="")
        sys.exit(0 if argv else 2)
    script = Path(argv[0]).expanduser()
    with one_line_errors():
        read_env_file()
        if not script.is_file():
            raise InputError(
                f"SCRIPT {argv[0]} is not a file: give the path of a script from timm's repository, "
                "https://github.com/huggingface/pytorch-image-models"
            )
    sys.argv = [str(script), *argv[1:]]
    sys.path.insert(0, str(script.resolve().parent))  # as python does; timm itself is imported already
    runpy.run_path(str(script), run_name="__main__")
