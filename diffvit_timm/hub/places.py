"""Where a run lies on the Hub: the name of a repository, and a folder in it."""

import os

from ..errors import InputError

__all__ = ["REPOSITORY_VARIABLE", "folder_prefix", "repository_name"]

REPOSITORY_VARIABLE = "HF_REPOSITORY"  # environment variable with the name of a repository


def repository_name(repo: str, parameter: str) -> str:
    """Return the name of a repository; the word HF_REPOSITORY stands for the value of that environment variable.

    Args:
        repo: NAME, USER/NAME or HF_REPOSITORY.
        parameter: name of the user's parameter, for the error.

    Raises:
        InputError: the variable is not set.
    """
    if repo != REPOSITORY_VARIABLE:
        return repo
    if not (name := os.environ.get(REPOSITORY_VARIABLE, "")):
        raise InputError(
            f"`{parameter}={repo}`: set {REPOSITORY_VARIABLE} in the environment or in .env, or give a name"
        )
    return name


def folder_prefix(path_in_repo: str | None) -> str:
    """Return what precedes the paths of a run in a repository: nothing in its root, otherwise FOLDER/.

    Raises:
        InputError: the path leaves the repository, or has an empty part.
    """
    if path_in_repo is None:
        return ""
    parts = path_in_repo.removesuffix("/").split("/")
    if any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise InputError(
            f"`path_in_repo={path_in_repo}` is not a folder in a repository: give a path such as runs/pets"
        )
    return "/".join(parts) + "/"
