"""The file .env in the working folder: a token for the Hub, and the name of a repository."""

import os
from pathlib import Path

from ..errors import InputError
from ..hub.places import REPOSITORY_VARIABLE

__all__ = ["read_env_file"]

VARIABLES = ("HF_TOKEN", REPOSITORY_VARIABLE)


def read_env_file() -> None:
    """Set HF_TOKEN and HF_REPOSITORY from .env if there is one. Variables that are set keep their values.

    Nothing of the file is printed or recorded.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(".env")
    if not path.is_file():
        return
    from dotenv import dotenv_values  # not above: most folders have no .env

    try:
        values = dotenv_values(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path.absolute()} cannot be read ({type(error).__name__}): correct or delete it") from error
    for name in VARIABLES:
        if value := values.get(name):
            os.environ.setdefault(name, value)
