"""Publish the explorer of a model as a Space: a web page on the Hub that everybody can open."""

import importlib.metadata
from collections.abc import Sequence

import yaml
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..console import log0, shortened
from ..errors import InputError
from .connection import HubCalls, HubError, hub_api
from .repo_files import differs, fetch, listing

__all__ = ["push_space"]

WEIGHTS = ("config.json", "model.safetensors")
MARK = "diffvit explore --space"  # a Space whose app.py has these words is ours
EMPTY = (".gitattributes", "README.md")  # what the Hub writes into a new Space
PYTHON = "3.12"  # the default of Spaces is older than the package allows
PREFIX = "hf-hub:"


def push_space(models: Sequence[str], space: str, private: bool = False) -> str:
    """Push the explorer of published models as a Space, in one commit.

    Everything is checked before anything is sent. A Space that exists is only replaced if this function wrote it, or if
    it is empty.

    Args:
        models: one or two models on the Hub, as hf-hub:USER/NAME.
        space: NAME or USER/NAME of the Space; created if it does not exist.
        private: whether a new Space is private.

    Returns:
        URL of the Space.

    Raises:
        InputError: a model is not on the Hub, the Space is somebody's own, or the Hub refuses the push.
    """
    calls = HubCalls("write to")
    for model in models:
        _require_published(calls, model)
    try:
        name = calls.run(lambda: _full_name(space))
        _require_ours(calls, name, space)
        files = _files(models, name)
        calls.run(lambda: _create_space(name, private))
        commit = calls.run(lambda: _commit(name, files))
        stored = calls.run(lambda: listing(name, commit, "space"))[1]
    except HubError as error:
        raise InputError(f"`space={space}` cannot be pushed to: {error}") from error
    if wrong := [path for path, content in files.items() if path not in stored or differs(content, stored[path])]:
        raise InputError(f"`space={space}`: the Hub stored different content for {', '.join(wrong)}: push again")
    return f"{hub_api().endpoint}/spaces/{name}"


def _require_published(calls: HubCalls, model: str) -> None:
    """Check that a model is on the Hub with its weights, where the Space can load it."""
    if not model.startswith(PREFIX):
        raise InputError(
            f"`models={model}` is not on the Hub, so a Space cannot load it: push it first (diffvit push), and give "
            "hf-hub:USER/NAME"
        )
    try:
        files = calls.run(lambda: listing(model.removeprefix(PREFIX)))[1]
    except HubError as error:
        raise InputError(f"`models={model}` cannot be found on the Hub: {error}") from error
    if missing := [name for name in WEIGHTS if name not in files]:
        raise InputError(f"`models={model}` has no {' and no '.join(missing)} in its root: push a run there first")


def _full_name(space: str) -> str:
    """Return USER/NAME of a Space."""
    validate_repo_id(space)
    user = hub_api().whoami()["name"]
    return space if "/" in space else f"{user}/{space}"


def _require_ours(calls: HubCalls, name: str, space: str) -> None:
    """Check that a Space does not exist, is empty, or was written by `push_space`."""

    def own_files() -> tuple[list[str], bytes]:
        try:
            commit, files = listing(name, repo_type="space")
        except RepositoryNotFoundError:
            return [], b""
        app = fetch(name, files["app.py"], commit, "space").read_bytes() if "app.py" in files else b""
        return [path for path in files if path not in EMPTY], app

    files, app = calls.run(own_files)
    if not files:
        return
    if MARK.encode() not in app:
        raise InputError(
            f"`space={space}` exists, and is not an explorer of diffvit (it has {shortened(', '.join(files))}): choose "
            "another name"
        )
    log0(f"the explorer in {name} is replaced; the old one stays in its history")


def _create_space(name: str, private: bool) -> None:
    hub_api().create_repo(name, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)


def _commit(name: str, files: dict[str, bytes]) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    message = f"The explorer of diffvit_timm {__version__}"
    return hub_api().create_commit(name, operations, commit_message=message, repo_type="space").oid


def _files(models: Sequence[str], space: str) -> dict[str, bytes]:
    """Return the files of a Space by their paths: the app, its requirements, and the page with the settings."""
    names = [model.removeprefix(PREFIX) for model in models]
    app = f'''"""The explorer of {" and ".join(names)}, written by {MARK} {space}."""

from diffvit_timm.app.serving import serve

serve({list(models)!r}, host="0.0.0.0", port=7860)
'''
    header = {
        "title": f"Attention of {' and '.join(name.rpartition('/')[2] for name in names)}",
        "sdk": "gradio",
        "sdk_version": importlib.metadata.version("gradio"),
        "python_version": PYTHON,
        "app_file": "app.py",
        "models": names,
    }
    readme = (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n"
        f"This page shows where {' and '.join(names)} look{'s' if len(names) == 1 else ''} on your image: A1, A2 and "
        "A1 - lambda A2 of every patch, layer and head, rollout, and relevance for the predicted class. It comes from "
        "diffvit_timm; on your own machine, where nothing leaves it, the same page is:\n\n"
        f"```bash\ndiffvit explore {' '.join(models)}\n```\n"
    )
    return {"app.py": app.encode(), "requirements.txt": f"diffvit_timm[app]=={__version__}\n".encode(),
            "README.md": readme.encode()}  # fmt: skip
