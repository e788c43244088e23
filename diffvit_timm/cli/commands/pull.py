"""Fetch a run that was pushed: its weights, logs and pictures.

diffvit pull USER/NAME FOLDER
"""

import dataclasses

import tyro

from ...files import new_folder
from ...hub.publishing import pull_run


@dataclasses.dataclass(frozen=True)
class Options:
    repo: tyro.conf.Positional[str]
    """Repository, USER/NAME."""
    out: tyro.conf.Positional[str]
    """Folder to write, new or empty."""
    revision: str | None = None
    """Branch, tag or commit; default: the newest."""


def main(options: Options) -> None:
    folder = new_folder(options.out, "out")
    pull_run(options.repo, folder, options.revision)
    print(folder)
