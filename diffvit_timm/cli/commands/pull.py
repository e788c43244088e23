"""Fetch a run that was pushed: its weights, logs and pictures.

    diffvit pull USER/NAME OUT

OUT is then a model for every command.
"""

import dataclasses
from typing import Annotated

import tyro

from ...files import new_folder
from ...hub.publishing import pull_run


@dataclasses.dataclass(frozen=True)
class Options:
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")]
    """Repository, USER/NAME."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder to write, new or empty."""
    revision: str | None = None
    """Branch, tag or commit; default: the newest."""


def main(options: Options) -> None:
    folder = new_folder(options.out, "out")
    pull_run(options.repo, folder, options.revision)
    print(folder)
