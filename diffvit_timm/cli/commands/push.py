"""Push the best weights, logs, curves, pictures and model card of a run to the Hub.

    diffvit push RUN USER/NAME --private
    diffvit push RUN HF_REPOSITORY --path-in-repo cifar100/diff_10m     # one repository for many runs

The token comes from hf auth login, from the environment variable HF_TOKEN, or from the file .env in the working folder.
HF_REPOSITORY stands for the repository that this variable names, in the environment or in .env. Local paths are
shortened to their last part before they are published.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ...hub.publishing import push_run
from ...options import CheckedOptions
from ..push_again import push_command


@dataclasses.dataclass(frozen=True)
class Options(CheckedOptions):
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or of weights."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")]
    """Repository, NAME or USER/NAME, or HF_REPOSITORY; it is created if it does not exist."""
    path_in_repo: str | None = None
    """Folder in the repository, for several runs in one repository; default: its root, from which timm loads."""
    private: bool = False
    """If the repository is new, make it private."""


def main(options: Options) -> None:
    with push_command():
        url = push_run(options.run, options.repo, options.private, path_in_repo=options.path_in_repo)
    print(url)
