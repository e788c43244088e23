"""Push the best weights of a run, its logs, its pictures and its model card to the Hub.

    diffvit push RUN USER/NAME --private

The token is that of hf auth login, or of the environment variable HF_TOKEN.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ...hub.publishing import push_run


@dataclasses.dataclass(frozen=True)
class Options:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run, or of weights."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")]
    """Repository, NAME or USER/NAME; it is created if it does not exist."""
    private: bool = False
    """Make the repository private if it is created."""


def main(options: Options) -> None:
    print(push_run(options.run, options.repo, options.private))
