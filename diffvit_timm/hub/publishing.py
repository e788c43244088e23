"""Push runs to the Hugging Face Hub and pull them back. The repository is checked before the training starts."""

import functools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..checksums import check_unchanged
from ..console import log0
from ..errors import InputError
from ..files import fill_folder
from .connection import HubCalls, HubError, hub_api
from .licences import PICTURES_FORBIDDEN
from .model_card import HAND_WRITTEN_MARK, model_card
from .places import folder_prefix, repository_name
from .redaction import Records, redacted_records, weights_folder
from .repo_files import Content, differs, fetch, listing, size_of

__all__ = ["PushError", "check_repository", "pull_run", "push_run"]

WEIGHTS = ("config.json", "model.safetensors")  # timm looks for them in the root of the repository
LOGS = ("config.yaml", "environment.json", "metrics.jsonl", "result.json", "training.png")  # in the folder run/
PREDICTIONS = "predictions.png"  # images of the dataset, in the folder run/
PICTURES = "run/attention"


class PushError(InputError):
    """A push that failed, of a run that is complete and can be pushed again.

    Args:
        reason: what happened and the fix, with the parameter.
        run, repo, private, path_in_repo: arguments of `push_run`.
    """

    def __init__(self, reason: str, run: Path, repo: str, private: bool, path_in_repo: str | None = None) -> None:
        super().__init__(f"{reason}; the run in {run} is complete and can be pushed again")
        self.run = run
        self.repo = repo
        self.private = private
        self.path_in_repo = path_in_repo


def check_repository(repo: str, private: bool = False, parameter: str = "push_to_hub") -> str:
    """Create a repository if it does not exist, and check that the token can write to it.

    A training calls this first, so that a wrong token or name fails at once and not after hours. It ends within the
    time limit of `HubCalls`.

    Args:
        repo: NAME, USER/NAME, or HF_REPOSITORY, as in `repository_name`.
        private: whether a new repository is private.
        parameter: name of the user's parameter, for the error.

    Returns:
        USER/NAME.

    Raises:
        InputError: the name is invalid, there is no token, the token may not write, or the Hub cannot be reached.
    """
    repo = repository_name(repo, parameter)
    try:
        return _create(HubCalls("write to"), repo, private)
    except HubError as error:
        raise InputError(f"`{parameter}={repo}` cannot be used: {error}") from error


def _create(calls: HubCalls, repo: str, private: bool) -> str:
    api = hub_api()

    def create() -> str:
        validate_repo_id(repo)
        api.whoami()
        return api.create_repo(repo, private=private, exist_ok=True).repo_id

    return calls.run(create)


def files_of_run(run: Path, records: Records) -> dict[str, Content]:
    """Return the files to push; config.yaml, environment.json and result.json without paths.

    Args:
        run: run folder, or folder with config.json and model.safetensors.
        records: what `redacted_records` returns for the folder.

    Returns:
        Path in the repository -> path on the disk, or the content itself.

    Raises:
        InputError: the weights or their config.json are missing or damaged.
    """
    weights = weights_folder(run)
    missing = [name for name in WEIGHTS if not (weights / name).is_file()]
    if missing:
        raise InputError(f"`run={run}` is not a finished run: {weights} has no {' and no '.join(missing)}")
    _require_whole_weights(run, weights)
    files: dict[str, Content] = {name: weights / name for name in WEIGHTS}
    files |= {f"run/{name}": run / name for name in LOGS if (run / name).is_file()}
    for name, content in (
        ("config.yaml", yaml.safe_dump(records.config, sort_keys=False)),
        ("environment.json", json.dumps(records.environment, indent=2) + "\n"),
        ("result.json", json.dumps(records.result, indent=2) + "\n"),
    ):
        if f"run/{name}" in files:
            files[f"run/{name}"] = content.encode()
    if records.hub_dataset in PICTURES_FORBIDDEN:
        return files
    files |= {f"run/{PREDICTIONS}": run / PREDICTIONS} if (run / PREDICTIONS).is_file() else {}
    return files | {f"{PICTURES}/{path.name}": path for path in sorted((run / "attention").glob("*.png"))}


def _require_whole_weights(run: Path, weights: Path) -> None:
    path = weights / "model.safetensors"
    try:
        check_unchanged(weights)
    except ValueError as error:
        raise InputError(f"`run={run}`: {weights} is not as it was saved: {error}") from error
    try:
        with safe_open(path, "pt"):  # reads the header, and compares it with the size of the file
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"`run={run}`: {path} is damaged ({error}): train or convert again") from error


def push_run(
    run: Path, repo: str, private: bool = False, parameter: str = "repo", path_in_repo: str | None = None
) -> str:
    """Push a run to the Hub: its best weights, logs, pictures and model card, in one commit.

    After a transient error of the network or the Hub, the call is tried again. The push ends within the time limit of
    `HubCalls`, and the sizes and hashes that the Hub then has are compared with the files. Files of an earlier run are
    deleted from run/. Text that somebody added at the end of the model card, below its mark, is kept. No path of this
    machine is published: see `redacted_records`.

    Args:
        run: run folder, or folder with config.json and model.safetensors.
        repo: NAME, USER/NAME, or HF_REPOSITORY, as in `repository_name`; created if it does not exist.
        private: whether a new repository is private.
        parameter: name of the user's parameter for `repo`, for the error.
        path_in_repo: folder in the repository, so that it can hold several runs; None for its root. timm loads only the
            root by its name; `pull_run` fetches both.

    Returns:
        URL of the repository, or of the folder in it.

    Raises:
        InputError: there are no weights to push, or the records of the run are damaged.
        PushError: the Hub refuses the push or cannot be reached. The run folder stays as it is.
    """
    prefix, repo = folder_prefix(path_in_repo), repository_name(repo, parameter)
    records = redacted_records(run)
    files = files_of_run(run, records)
    names = sorted(files)
    _card_of_run(run, records, repo, names, prefix)  # damaged records are found before anything is sent
    files = {prefix + path: content for path, content in files.items()}
    calls = HubCalls("write to", sum(size_of(content) for content in files.values()))
    failed = functools.partial(PushError, run=run, repo=repo, private=private, path_in_repo=path_in_repo)
    try:
        name = _create(calls, repo, private)
    except HubError as error:
        raise failed(f"`{parameter}={repo}` cannot be used: {error}") from error
    card = _card_of_run(run, records, name, names, prefix)
    try:
        additions = calls.run(lambda: _upload(name, files))
        commit, readme = calls.run(lambda: _commit(name, additions, card, f"Push {run.resolve().name}", prefix))
        stored = calls.run(lambda: listing(name, commit))[1]
    except HubError as error:
        raise failed(f"`{parameter}={repo}` cannot be pushed to: {error}") from error
    files[f"{prefix}README.md"] = readme
    if wrong := [path for path, content in files.items() if path not in stored or differs(content, stored[path])]:
        raise failed(f"`{parameter}={repo}`: the Hub stored different content for {', '.join(wrong)}")
    return f"{hub_api().endpoint}/{name}" + (f"/tree/main/{prefix.removesuffix('/')}" if prefix else "")


def _card_of_run(run: Path, records: Records, repo: str, paths: list[str], prefix: str) -> str:
    if "val_accuracy" in records.result and "test_interval_95" not in records.result:
        raise InputError(
            f"`run={run}` chose a setting, such as a learning rate, and was not tested, so a model card would have no "
            "result: push a tested run, or only the folder best/"
        )
    try:
        return model_card(run, records, repo, paths, prefix.removesuffix("/"))
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # a value is missing or strange
        reason = f"{type(error).__name__}: {' '.join(str(error).replace('`', chr(39)).split())}"
        raise InputError(
            f"`run={run}`: config.json, config.yaml, result.json or environment.json is incomplete or damaged "
            f"({reason}): restore it, or push only the folder best/"
        ) from error


def _upload(repo: str, files: Mapping[str, Content]) -> list[CommitOperationAdd]:
    """Upload the large files, which the next commit refers to.

    One at a time: huggingface_hub uploads several in a thread pool, and Python waits for pool threads at exit.
    """
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    for addition in additions:
        hub_api().preupload_lfs_files(repo, [addition], free_memory=False)
    return additions


def _commit(
    repo: str, additions: Sequence[CommitOperationAdd], card: str, message: str, prefix: str
) -> tuple[str, bytes]:
    """Commit the files and the model card, and delete what an earlier run left in run/ below the same prefix.

    Returns:
        The commit, and the model card with the text that was added by hand.
    """
    # An earlier attempt or somebody else may have changed the repository, so it is read every time.
    head, there = listing(repo)
    paths = {addition.path_in_repo for addition in additions}
    stale = [path for path in there if path.startswith(f"{prefix}run/") and path not in paths]
    card_path = f"{prefix}README.md"
    old = fetch(repo, there[card_path], head).read_bytes() if card_path in there else b""
    mark = HAND_WRITTEN_MARK.encode()
    if old and mark not in old:
        log0(f"the {card_path} of {repo} is replaced; its text stays in the history of the repository (commit {head})")
    readme = card.encode() + b"\n" + mark + (old.partition(mark)[2] or b"\n")
    operations: list = [CommitOperationDelete(path) for path in stale]
    operations += [*additions, CommitOperationAdd(card_path, readme)]
    return hub_api().create_commit(repo, operations, commit_message=message).oid, readme


def pull_run(repo: str, folder: Path, revision: str | None = None, path_in_repo: str | None = None) -> None:
    """Pull a run that was pushed, and restore its folder: weights in best/, logs and pictures beside it.

    Only files that a push writes are read: config.json and model.safetensors in the root, and the logs and pictures in
    run/. The pull ends within the time limit of `HubCalls`. Sizes and hashes are compared with
    those that the Hub lists.

    Args:
        repo: USER/NAME, or HF_REPOSITORY, as in `repository_name`.
        folder: folder to fill, new or empty.
        revision: branch, tag or commit; None for the newest.
        path_in_repo: folder of the run in the repository; None for its root.

    Raises:
        InputError: the Hub refuses the request, the repository does not contain a run, or a file is damaged.
    """
    prefix, repo = folder_prefix(path_in_repo), repository_name(repo, "repo")
    calls = HubCalls("read")
    try:
        commit, listed = calls.run(lambda: listing(repo, revision))
        own = [path for path in listed if path.startswith(prefix)]
        places = {path: place for path in own if (place := _path_in_run(path.removeprefix(prefix)))}
        missing = [prefix + name for name in WEIGHTS if prefix + name not in places]
        if missing:
            raise InputError(
                f"`repo={repo}` does not contain a run: it has no {' and no '.join(missing)}{_runs_in(listed)}"
            )
        calls.allow(sum(listed[path].size or 0 for path in places))
        cached = {path: calls.run(functools.partial(fetch, repo, listed[path], commit)) for path in places}
    except HubError as error:
        raise InputError(f"`repo={repo}` cannot be pulled: {error}") from error
    with fill_folder(folder, "the run", "pull again") as temporary:
        for path, place in places.items():
            (temporary / place).parent.mkdir(exist_ok=True)
            shutil.copyfile(cached[path], temporary / place)


def _runs_in(paths: Iterable[str]) -> str:
    """Return the folders of a repository that hold runs, for an error; nothing if there are none."""
    runs = sorted(path.removesuffix("/model.safetensors") for path in paths if path.endswith("/model.safetensors"))
    return f", but runs in {', '.join(runs)}: pass `path_in_repo`" if runs else ""


def _path_in_run(path: str) -> str | None:
    """Return where a file of a repository belongs in the run folder, None if a push does not write it."""
    folder, _, name = path.rpartition("/")
    if path in WEIGHTS:
        return f"best/{path}"
    if folder == "run" and name in (*LOGS, PREDICTIONS):
        return name
    if folder == PICTURES and name.endswith(".png") and name.isprintable():
        return f"attention/{name}"
    return None
