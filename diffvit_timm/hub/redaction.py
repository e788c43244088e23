"""Remove local paths and tokens from the records of a run before they are published."""

import dataclasses
import re
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..data.config import SHORT_NAMES
from ..files import read_json, read_yaml

__all__ = ["Records", "redacted_records", "redacted_text", "weights_folder"]

# Entries of environment.json that are published.
ENVIRONMENT = ("command", "python", "packages", "platform", "cpus", "threads", "gpus", "dataset_is_folder")
HUB_MODEL = re.compile(r"hf-hub:[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
TOKEN = re.compile(r"hf_\w{8,}")  # a user's token for the Hub


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a run as they are published; empty where the folder has none.

    Attributes:
        config: options, of config.yaml.
        environment: command, versions and hardware, of environment.json.
        result: of result.json.
        hub_dataset: USER/NAME of the dataset on the Hub, None if it is a folder.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    hub_dataset: str | None

    @property
    def dataset(self) -> str:
        """Name of the dataset for people: the last part of its name on the Hub or of its path."""
        return str(self.config.get("dataset") or "").rpartition("/")[2]


def weights_folder(run: Path) -> Path:
    """Return the folder of config.json and model.safetensors: best/ of a run, or the folder itself."""
    return run / "best" if (run / "best").is_dir() else run


def redacted_records(run: Path) -> Records:
    """Read the records of a run folder, and replace the paths in them by their last parts.

    The dataset and the command keep names on the Hub. Whether the dataset was a folder is taken from environment.json,
    because the folder may no longer exist.

    Args:
        run: run folder, or folder of weights, whose records are empty.

    Raises:
        InputError: a file that cannot be read.
    """
    config = _read(run / "config.yaml", read_yaml)
    environment = _read(run / "environment.json", read_json)
    result = _read(run / "result.json", read_json)
    dataset = _hub_dataset(config.get("dataset"), environment.get("dataset_is_folder"))
    names = config.get("dataset") if dataset else None, dataset, config.get("push_to_hub")
    hub_names = {name for name in names if name}
    config = {name: _redacted(value, hub_names) for name, value in config.items()}
    if dataset:
        config["dataset"] = dataset
    environment = {name: environment[name] for name in ENVIRONMENT if name in environment}
    if "command" in environment:
        environment["command"] = _redacted_command(str(environment["command"]), hub_names)
    if "model" in result:
        result = {**result, "model": redacted_text(str(result["model"]))}
    return Records(config, environment, result, dataset)


def _read(path: Path, read: Callable[[Path, str], dict]) -> dict[str, Any]:
    """Read a file of a run folder, {} if there is none."""
    return read(path, "restore it, or delete it") if path.is_file() else {}


def _hub_dataset(name: Any, is_folder: bool | None) -> str | None:
    """Return USER/NAME of a dataset on the Hub, None for a folder.

    Args:
        name: option `dataset`; a short name stands for its dataset on the Hub.
        is_folder: whether it was a folder, as the run recorded it; None if it did not.
    """
    name = str(name or "")
    if Path(name).expanduser().is_dir() if is_folder is None else is_folder:
        return None
    name = SHORT_NAMES.get(name, {}).get("dataset", name)
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if "/" in name else None


def redacted_text(text: str, hub_names: Collection[str] = ()) -> str:
    """Remove local paths and tokens from the value of an option.

    Args:
        text: the value.
        hub_names: names on the Hub, which are not paths.

    Returns:
        The last part if the text is a path, otherwise the text itself. A token of the Hub becomes 'hf_...'.
    """
    if text in hub_names or HUB_MODEL.fullmatch(text):
        return text
    if text.startswith("~") or re.search(r"[/\\]", text):
        text = re.split(r"[/\\@]", text.rstrip("/\\"))[-1].lstrip("~") or "folder"
    return TOKEN.sub("hf_...", text)


def _redacted(value: Any, hub_names: Collection[str]) -> Any:
    if isinstance(value, str):
        return "=".join(redacted_text(part, hub_names) for part in value.split("="))
    if isinstance(value, (list, tuple)):
        return [_redacted(item, hub_names) for item in value]
    if isinstance(value, dict):
        return {name: _redacted(item, hub_names) for name, item in value.items()}
    return value


def _redacted_command(command: str, hub_names: Collection[str]) -> str:
    try:
        words = shlex.split(command)
    except ValueError:  # unbalanced quotes
        words = command.split()
    return shlex.join(_redacted(word, hub_names) for word in words)
