"""Push runs to the Hugging Face Hub and pull them back. The repository is checked before the training starts."""

import shutil
import time
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..errors import InputError
from ..files import fill_folder
from .model_card import HAND_WRITTEN_MARK, model_card

__all__ = ["check_repository", "pull_run", "push_run"]

WEIGHTS = ("config.json", "model.safetensors")  # in the root of the repository, where timm looks for them
LOGS = ("config.yaml", "environment.json", "metrics.jsonl", "result.json", "training.png")  # in the folder run/
NO_PICTURES = ("1aurent/BACH",)  # datasets whose licence forbids sharing pictures made from their images
ATTEMPTS, FIRST_WAIT = 4, 2.0  # of a push; seconds, doubled every time, on top of huggingface_hub's own retries
TRANSIENT = (408, 409, 429, 500, 502, 503, 504)  # HTTP status codes after which a second attempt can succeed


def check_repository(repo: str, private: bool = False, parameter: str = "push_to_hub") -> str:
    """Create a repository if it does not exist, and check that the token can write to it.

    A training calls this first, so that a wrong token or name fails at once and not after hours.

    Args:
        repo: NAME, or USER/NAME.
        private: whether a new repository is private.
        parameter: name of the user's parameter, for the error.

    Returns:
        USER/NAME.

    Raises:
        InputError: the name is invalid, there is no token, the token may not write, or the Hub cannot be reached.
    """
    api = HfApi(library_name="diffvit_timm")
    try:
        validate_repo_id(repo)
        api.whoami()
        return api.create_repo(repo, private=private, exist_ok=True).repo_id
    except Exception as error:
        raise InputError(f"`{parameter}={repo}` cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the reason of an error of the Hub and the fix, in one line without backquotes."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    text = " ".join(str(error).replace("`", "'").split())
    if isinstance(error, HFValidationError):
        return f"it is not a valid repository name ({text}): pass USER/NAME"
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "there is no token, or the Hub does not accept it: run 'hf auth login' or set HF_TOKEN"
    if status == 403:
        return "the token may not write to it: create a token that may, or choose another repository"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, RepositoryNotFoundError):
        return "it does not exist, or the token may not read it: check the name, or run 'hf auth login'"
    if isinstance(error, RevisionNotFoundError):
        return "it does not have this revision: check `revision`"
    detail = f"HTTP {status}" if status else f"{type(error).__name__}: {text[:200]}"
    return f"the Hub cannot be reached or reports an error ({detail}): check the network and try again"


def files_of_run(run: Path) -> dict[str, Path]:
    """Return the files to push.

    Args:
        run: run folder, or folder with config.json and model.safetensors.

    Returns:
        Path in the repository -> path on the disk.

    Raises:
        InputError: the weights or their config.json are missing.
    """
    weights = run / "best" if (run / "best").is_dir() else run
    missing = [name for name in WEIGHTS if not (weights / name).is_file()]
    if missing:
        raise InputError(f"`run={run}` is not a finished run: {weights} has no {' and no '.join(missing)}")
    files = {name: weights / name for name in WEIGHTS}
    files |= {f"run/{name}": run / name for name in LOGS if (run / name).is_file()}
    config = yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").is_file() else {}
    if config.get("dataset") in NO_PICTURES:
        return files
    return files | {f"run/attention/{path.name}": path for path in sorted((run / "attention").glob("*.png"))}


def push_run(run: Path, repo: str, private: bool = False, parameter: str = "repo") -> str:
    """Push a run to the Hub: its best weights, logs, pictures and model card, in one commit.

    After a transient error of the network or the Hub, the commit is tried again. Files of an earlier run are deleted
    from run/. Text that somebody added at the end of the model card, below its mark, is kept.

    Args:
        run: run folder, or folder with config.json and model.safetensors.
        repo: NAME, or USER/NAME; created if it does not exist.
        private: whether a new repository is private.
        parameter: name of the user's parameter for `repo`, for the error.

    Returns:
        URL of the repository.

    Raises:
        InputError: there are no weights to push, or the Hub refuses them. The error ends with the command that pushes
            the run again; the run folder stays as it is.
    """
    files = files_of_run(run)
    retry = f"the run in {run} is complete, push it again with: diffvit push {run} {repo}"
    retry += " --private" if private else ""
    try:
        name = check_repository(repo, private, parameter)
    except InputError as error:
        raise InputError(f"{error}; {retry}") from error
    api = HfApi(library_name="diffvit_timm")
    card = model_card(run, name, sorted(files))
    for attempt in range(ATTEMPTS):
        try:
            # An earlier attempt or somebody else may have changed the repository, so it is read every time.
            stale = [path for path in api.list_repo_files(name) if path.startswith("run/") and path not in files]
            operations: list = [CommitOperationDelete(path) for path in stale]
            operations += [CommitOperationAdd(path, source) for path, source in files.items()]
            operations.append(CommitOperationAdd("README.md", (card + _hand_written(name)).encode()))
            api.create_commit(name, operations, commit_message=f"Push {run.resolve().name}")
        except Exception as error:
            if attempt + 1 == ATTEMPTS or not _is_transient(error):
                raise InputError(f"`{parameter}={repo}` cannot be pushed to: {_reason(error)}; {retry}") from error
            time.sleep(FIRST_WAIT * 2**attempt)
        else:
            break
    return f"{api.endpoint}/{name}"


def _is_transient(error: BaseException | None) -> bool:
    """Return whether a second attempt can succeed: after a broken connection, a busy server or a commit in between.

    The causes of the error are checked, too.
    """
    if error is None:
        return False
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code in TRANSIENT
    # By name, so that no HTTP client is imported: httpx has a TransportError, Python and requests a ConnectionError.
    is_broken = any(
        name in kind.__name__ for kind in type(error).__mro__ for name in ("TransportError", "ConnectionError")
    )
    return is_broken or _is_transient(error.__cause__)


def _hand_written(repo: str) -> str:
    """Return the end of the repository's model card, from the mark on; the mark only if there is no card yet."""
    try:
        text = Path(hf_hub_download(repo, "README.md")).read_text()
    except EntryNotFoundError:
        text = ""
    return HAND_WRITTEN_MARK + text.partition(HAND_WRITTEN_MARK)[2]


def pull_run(repo: str, folder: Path, revision: str | None = None) -> None:
    """Pull a run that was pushed, and restore its folder: weights in best/, logs and pictures beside it.

    Args:
        repo: USER/NAME.
        folder: folder to fill, new or empty.
        revision: branch, tag or commit; None for the newest.

    Raises:
        InputError: the Hub refuses, or the repository does not contain a run.
    """
    try:
        snapshot = Path(snapshot_download(repo, revision=revision))
    except Exception as error:
        raise InputError(f"`repo={repo}` cannot be pulled: {_reason(error)}") from error
    missing = [name for name in WEIGHTS if not (snapshot / name).is_file()]
    if missing:
        raise InputError(f"`repo={repo}` does not contain a run: it has no {' and no '.join(missing)}")
    with fill_folder(folder, "the run", "pull again") as temporary:
        (temporary / "best").mkdir()
        for name in WEIGHTS:
            shutil.copyfile(snapshot / name, temporary / "best" / name)
        if (snapshot / "run").is_dir():
            shutil.copytree(snapshot / "run", temporary, dirs_exist_ok=True)
