"""The files of a repository as the Hub lists them, and whether a file has the size and the hash that it lists."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import hf_hub_download
from huggingface_hub.hf_api import RepoSibling

from ..console import log0
from .connection import HubError, hub_api

__all__ = ["Content", "RepoType", "differs", "fetch", "listing", "size_of"]

Content = Path | bytes  # of a file
RepoType = Literal["model", "space"]


def listing(
    repo: str, revision: str | None = None, repo_type: RepoType = "model"
) -> tuple[str, dict[str, RepoSibling]]:
    """List the files of a repository.

    Args:
        repo: USER/NAME.
        revision: branch, tag or commit; None for the newest commit.
        repo_type: type of the repository.

    Returns:
        The commit of the revision, and what the Hub says about each file, by its path.

    Raises:
        TypeError: the answer is not a list of files; also any error of huggingface_hub.
    """
    info: Any = hub_api().repo_info(repo, revision=revision, repo_type=repo_type, files_metadata=True)
    files = info.siblings or []
    # huggingface_hub does not check the types of an answer.
    if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)) or not all(
        isinstance(file.rfilename, str) and isinstance(file.size, int | None) for file in files
    ):
        raise TypeError("its file list lacks names, sizes or the commit")
    return str(info.sha), {file.rfilename: file for file in files}


def fetch(repo: str, file: RepoSibling, commit: str, repo_type: RepoType = "model") -> Path:
    """Download a file into the cache, or find it there. A damaged file is downloaded once more.

    Args:
        repo: USER/NAME.
        file: entry of `listing`.
        commit: commit that was listed.
        repo_type: type of the repository.

    Returns:
        Path of the file in the cache.

    Raises:
        HubError: it is still damaged; also any error of huggingface_hub.
    """
    for force in (False, True):
        path = Path(hf_hub_download(repo, file.rfilename, revision=commit, repo_type=repo_type, force_download=force))
        if not differs(path, file):
            return path
        if not force:
            log0(f"{path} does not match the size or hash on the Hub; downloading it again")
    raise HubError(f"{file.rfilename} is damaged, also after a second download: delete {path.resolve()} and try again")


def size_of(content: Content) -> int:
    """Return the size of a file in bytes.

    Args:
        content: path of the file, or the content itself.
    """
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _open(content: Content) -> io.BufferedIOBase:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def differs(content: Content, expected: RepoSibling) -> bool:
    """Return whether a file differs from an entry of the Hub in its size or hash.

    Args:
        content: path of the file, or the content itself.
        expected: entry of `listing`. A size or hash that it does not have is not compared.
    """
    size = size_of(content)
    if expected.size is not None and size != expected.size:
        return True
    if expected.lfs is not None:
        with _open(content) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != expected.lfs.sha256
    if expected.blob_id is None:
        return False
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)  # git's hash of a file
    with _open(content) as file:
        digest.update(file.read())
    return digest.hexdigest() != expected.blob_id
