"""Fetch a run that was pushed: its weights, logs and pictures.

    diffvit pull USER/NAME OUT
    diffvit pull HF_REPOSITORY OUT --path-in-repo cifar100/diff_10m

OUT is then a model for every command.
"""

import dataclasses
from typing import Annotated

import tyro

from ...hub.publishing import pull_run
from ...options import CheckedOptions
from ...output import claim_new_folder


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")]
    """Repository, USER/NAME, or HF_REPOSITORY for the one that this variable names, in the environment or in .env."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder to write, new or empty."""
    revision: str | None = None
    """Branch, tag or commit; default: the newest."""
    path_in_repo: str | None = None
    """Folder of the run in the repository; default: its root."""


def main(options: Options) -> None:
    with claim_new_folder(options.out, "out") as folder:
        pull_run(options.repo, folder, options.revision, options.path_in_repo)
    print(folder)
