"""Fetch a run that was pushed: its weights, logs and pictures.

    diffvit pull USER/NAME OUT

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
    """Repository, USER/NAME."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder to write, new or empty."""
    revision: str | None = None
    """Branch, tag or commit; default: the newest."""


def main(options: Options) -> None:
    with claim_new_folder(options.out, "out") as folder:
        pull_run(options.repo, folder, options.revision)
    print(folder)
