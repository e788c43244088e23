"""The files of a repository as the Hub lists them, and whether a file has the size and the hash that it lists."""

import hashlib
import io
import re
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.hf_api import RepoSibling

from ..console import log0
from .connection import HubError, hub_api

__all__ = ["Content", "differs", "fetch", "listing", "size_of"]

Content = Path | bytes  # of a file


def listing(repo: str, revision: str | None = None) -> tuple[str, dict[str, RepoSibling]]:
    """Return the commit of a revision, and what the Hub says about each file, by its path.

    Raises:
        TypeError: the answer is not a list of files.
    """
    info = hub_api().model_info(repo, revision=revision, files_metadata=True)
    files = info.siblings or []
    # huggingface_hub does not check the types of an answer.
    if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)) or not all(
        isinstance(file.rfilename, str) and isinstance(file.size, int | None) for file in files
    ):
        raise TypeError("a list of files without names, sizes or its commit")
    return str(info.sha), {file.rfilename: file for file in files}


def fetch(repo: str, file: RepoSibling, commit: str) -> Path:
    """Download a file into the cache, or find it there. A damaged file is downloaded once more.

    Raises:
        HubError: it is still damaged.
    """
    for force in (False, True):
        path = Path(hf_hub_download(repo, file.rfilename, revision=commit, force_download=force))
        if not differs(path, file):
            return path
        if not force:
            log0(f"{path} is not what the Hub lists (size or hash): it is downloaded again")
    raise HubError(f"{file.rfilename} is damaged, also after a second download: delete {path.resolve()} and try again")


def size_of(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _open(content: Content) -> io.BufferedIOBase:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def differs(content: Content, expected: RepoSibling) -> bool:
    """Return whether a file has another size or hash than the Hub says. Where it says nothing, it does not differ."""
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
