"""Turn errors of `datasets` into one line with the cause and the fix."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

from ..console import shortened
from ..errors import InputError

__all__ = ["load_errors"]

LENGTH = 300  # characters of an error of `datasets`


@contextlib.contextmanager
def load_errors(name: str, dataset_config: str | None = None, parameter: str = "dataset") -> Iterator[None]:
    """Turn the errors of `datasets` within this context into an InputError.

    Args:
        name: Hub name or folder of the dataset.
        dataset_config: configuration that was asked for.
        parameter: what the caller calls the parameter `name`.

    Raises:
        InputError: the dataset cannot be loaded.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # `datasets` does not wrap errors of the network, pyarrow or YAML
        given = f"`{parameter}={name}`"
        is_folder = Path(name).expanduser().is_dir()
        raise InputError(
            _configuration_error(given, name, dataset_config, str(error))
            or (_folder_error(given, error) if is_folder else _hub_error(given, name, error))
        ) from error


def _configuration_error(given: str, name: str, dataset_config: str | None, text: str) -> str | None:
    """Return the message if a configuration is missing or unknown; `datasets` lists those that there are."""
    match = re.search(r"(?:available configs|Available): \[(.*?)\]", text)
    if match is None:
        return None
    names = shortened(match[1].replace("'", ""), LENGTH)
    if dataset_config:
        return f"`dataset_config={dataset_config}` is not a configuration of {name}: choose one of {names}"
    return f"{given} has several configurations: pass `dataset_config`, one of {names}"


def _folder_error(given: str, error: Exception) -> str:
    if isinstance(error, (DataFilesNotFoundError, EmptyDatasetError)):
        return f"{given} contains neither parquet files nor class folders: {_text(error)}"
    return f"{given} cannot be read ({_cause(error)}): check its files"


def _hub_error(given: str, name: str, error: Exception) -> str:
    text = _text(error)
    if isinstance(error, DatasetNotFoundError) and "gated" in text:
        page = f"https://huggingface.co/datasets/{name}"
        return f"{given} is gated: ask for access on its page, {page}, and log in with hf auth login"
    if isinstance(error, DatasetNotFoundError) and "doesn't exist on the Hub" in text:
        return f"{given} does not exist on the Hub, or it is private: check the name, or log in with hf auth login"
    if "scripts are no longer supported" in text:
        return f"{given} is loaded by a script, which datasets no longer runs ({text}): use a dataset of parquet files"
    if isinstance(error, (DatasetNotFoundError, DataFilesNotFoundError, EmptyDatasetError, DatasetGenerationError)):
        return f"{given} cannot be loaded from the Hub: {_cause(error)}"
    return (
        f"{given} is not a folder and cannot be loaded from the Hub ({_cause(error)}): check the name and the network, "
        "or pass the path of a folder"
    )


def _cause(error: Exception) -> str:
    """Return the type and the text of an error, or of its cause if it only says that generating a dataset failed."""
    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {_text(error)}".removesuffix(": ")


def _text(error: Exception) -> str:
    return shortened(str(error), LENGTH).replace("`", "'").rstrip(".")
