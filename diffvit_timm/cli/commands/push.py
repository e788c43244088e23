"""Push the best weights of a run, its logs, its pictures and its model card to the Hub.

diffvit push RUN USER/NAME --private
"""

import dataclasses
from pathlib import Path

import tyro

from ...hub.publishing import push_run


@dataclasses.dataclass(frozen=True)
class Options:
    run: tyro.conf.Positional[Path]
    """Folder of a run, or of weights."""
    repo: tyro.conf.Positional[str]
    """Repository, NAME or USER/NAME; it is created if it does not exist."""
    private: bool = False
    """Make the repository private if it is created."""


def main(options: Options) -> None:
    print(push_run(options.run, options.repo, options.private))
