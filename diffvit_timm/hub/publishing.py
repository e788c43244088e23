"""Runs on the Hub and back: the repository checked before a training, the run pushed after it, any run fetched."""

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
from ..files import filling
from .model_card import BY_HAND, model_card

__all__ = ["check_repository", "pull_run", "push_run"]

WEIGHTS = ("config.json", "model.safetensors")  # at the root of the repository, where timm looks
LOGS = ("config.yaml", "environment.json", "metrics.jsonl", "result.json", "training.png")  # in its folder run/
KEPT_BACK = ("1aurent/BACH",)  # whose licence lets nobody pass on pictures made of its images
TRIES, FIRST_WAIT = 4, 2.0  # of a push; seconds, doubled each time: huggingface_hub waits for each request besides
TRANSIENT = (408, 409, 429, 500, 502, 503, 504)


def check_repository(repo: str, private: bool = False, option: str = "--push-to-hub") -> str:
    """Make sure, before a training, that its result can be pushed: the token may write, the repository is there.

    Args:
        repo: NAME, or USER/NAME.
        private: of a repository that is not there yet, and is made.
        option: what the user calls it.

    Returns:
        USER/NAME.

    Raises:
        InputError: no token or one that may not write, a name that is none, a Hub that cannot be reached.
    """
    api = HfApi(library_name="diffvit_timm")
    try:
        validate_repo_id(repo)
        api.whoami()
        return api.create_repo(repo, private=private, exist_ok=True).repo_id
    except Exception as error:
        raise InputError(f"{option} {repo}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong with the Hub and what to do, in one line."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, HFValidationError):
        return f"no name of a repository ({' '.join(str(error).split())}): give USER/NAME"
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub knows no such token, or there is none here: run `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "the token may not write there: make one that may, or give another repository"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or the token may not see it: check the name, or run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision: check --revision"
    detail = f"HTTP {status}" if status else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"the Hub cannot be reached or does not answer as it should ({detail}): check the network, and try again"


def files_of_run(run: Path) -> dict[str, Path]:
    """Of a run folder, or a folder of weights, the files to push, by their places in the repository.

    Raises:
        InputError: it has no weights, or half of them.
    """
    weights = run / "best" if (run / "best").is_dir() else run
    missing = [name for name in WEIGHTS if not (weights / name).is_file()]
    if missing:
        raise InputError(f"RUN {run} is no finished run: {weights} has no {' and no '.join(missing)}")
    files = {name: weights / name for name in WEIGHTS}
    files |= {f"run/{name}": run / name for name in LOGS if (run / name).is_file()}
    config = yaml.safe_load((run / "config.yaml").read_text()) if (run / "config.yaml").is_file() else {}
    if config.get("dataset") in KEPT_BACK:
        return files
    return files | {f"run/attention/{path.name}": path for path in sorted((run / "attention").glob("*.png"))}


def push_run(run: Path, repo: str, private: bool = False) -> str:
    """Push the best weights of a run, its logs and pictures, and its card, in one commit; again where the Hub stumbles.

    What a reader has written below the card's mark stays; what an earlier run has left in run/ goes.

    Args:
        run: folder of a run, or of weights.
        repo: NAME, or USER/NAME; made if it is not there.
        private: of one that is made.

    Returns:
        The address of the repository.

    Raises:
        InputError: no weights to push, or what the Hub said, with the command to try again; the folder stays as it is.
    """
    files = files_of_run(run)
    again = f"python -m diffvit_timm push {run} {repo}{' --private' if private else ''}"
    try:
        name = check_repository(repo, private, "REPO")
    except InputError as error:
        raise InputError(f"{error}; nothing was pushed, the run is whole: {again}") from error
    api = HfApi(library_name="diffvit_timm")
    card = model_card(run, name, sorted(files))
    for attempt in range(TRIES):
        try:
            there = api.list_repo_files(name)
            stale = [place for place in there if place.startswith("run/") and place not in files]  # of another run
            operations: list = [CommitOperationDelete(place) for place in stale]
            operations += [CommitOperationAdd(place, path) for place, path in files.items()]
            operations.append(CommitOperationAdd("README.md", (card + _written_by_hand(name)).encode()))
            api.create_commit(name, operations, commit_message=f"Push {run.resolve().name}")
        except Exception as error:
            if attempt + 1 == TRIES or not _is_transient(error):
                raise InputError(f"REPO {repo}: {_reason(error)}; the run is whole in {run}: {again}") from error
            time.sleep(FIRST_WAIT * 2**attempt)
        else:
            break
    return f"{api.endpoint}/{name}"


def _is_transient(error: BaseException | None) -> bool:
    """Whether another try may do: a broken connection, a busy server, a commit between ours; its causes count too."""
    if error is None:
        return False
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code in TRANSIENT
    is_broken = any(
        name in kind.__name__ for kind in type(error).__mro__ for name in ("TransportError", "ConnectionError")
    )
    return is_broken or _is_transient(error.__cause__)


def _written_by_hand(repo: str) -> str:
    """What stands below the mark in the repository's card, with the mark."""
    try:
        text = Path(hf_hub_download(repo, "README.md")).read_text()
    except EntryNotFoundError:
        return ""
    return BY_HAND + text.split(BY_HAND, 1)[1] if BY_HAND in text else ""


def pull_run(repo: str, folder: Path, revision: str | None = None) -> None:
    """Fetch a run that was pushed, as the folder that it was: weights in best/, logs and pictures beside it.

    Args:
        repo: USER/NAME.
        folder: new or empty.
        revision: branch, tag or commit; None: the newest.

    Raises:
        InputError: what the Hub said, or a repository that holds no run.
    """
    try:
        snapshot = Path(snapshot_download(repo, revision=revision))
    except Exception as error:
        raise InputError(f"REPO {repo}: {_reason(error)}") from error
    missing = [name for name in WEIGHTS if not (snapshot / name).is_file()]
    if missing:
        raise InputError(f"REPO {repo} holds no weights that were pushed from here: no {' and no '.join(missing)}")
    with filling(folder, "the run", "pull again") as aside:
        (aside / "best").mkdir()
        for name in WEIGHTS:
            shutil.copyfile(snapshot / name, aside / "best" / name)
        if (snapshot / "run").is_dir():
            shutil.copytree(snapshot / "run", aside, dirs_exist_ok=True)
