"""A dataset that cannot be loaded is one line with the cause, and one of several configurations can be chosen."""

import datasets
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from PIL import Image

from diffvit_timm.data.config import DatasetConfig
from diffvit_timm.data.datasets import load_images, load_splits
from diffvit_timm.errors import InputError

NAME = "somebody/pictures"
GATED = f"Dataset '{NAME}' is a gated dataset on the Hub."
IS_GATED = (
    f"is gated: ask for access on its page, https://huggingface.co/datasets/{NAME}, and log in with hf auth login"
)
NOT_LOADED = "is not a folder and cannot be loaded from the Hub"
CONFIGS = (
    "Config name is missing.\nPlease pick one among the available configs: ['small', 'large']\nExample of usage:\n\t"
    f"`load_dataset('{NAME}', 'small')`"
)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            DatasetNotFoundError(f"{GATED} You must be authenticated to access it."),
            IS_GATED,
        ),
        (
            DatasetNotFoundError(f"{GATED} Visit the dataset page at https://huggingface.co/datasets/{NAME} to ask."),
            IS_GATED,
        ),
        (
            DatasetNotFoundError(f"Dataset '{NAME}' doesn't exist on the Hub or cannot be accessed."),
            "does not exist on the Hub, or it is private: check the name, or log in with hf auth login",
        ),
        (
            DatasetNotFoundError(f"Revision 'v9' doesn't exist for dataset '{NAME}' on the Hub."),
            f"cannot be loaded from the Hub: DatasetNotFoundError: Revision 'v9' doesn't exist for dataset '{NAME}' on "
            "the Hub",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found pictures.py"),
            "is loaded by a script, which datasets no longer runs (Dataset scripts are no longer supported, but found "
            "pictures.py): use a dataset of parquet files",
        ),
        (ValueError(CONFIGS), "has several configurations: pass `dataset_config`, one of small, large"),
        (
            EmptyDatasetError(f"The directory at hf://datasets/{NAME} doesn't contain any data files"),
            f"cannot be loaded from the Hub: EmptyDatasetError: The directory at hf://datasets/{NAME} doesn't contain "
            "any data files",
        ),
        (
            DataFilesNotFoundError(f"No (supported) data files found in {NAME}"),
            f"cannot be loaded from the Hub: DataFilesNotFoundError: No (supported) data files found in {NAME}",
        ),
        (
            caused(DatasetGenerationError("An error occurred while generating the dataset"), ValueError("bad\nfooter")),
            "cannot be loaded from the Hub: ValueError: bad footer",
        ),
        (
            KeyError("timed out"),  # as any exception of the network, which is not an OSError
            f"{NOT_LOADED} (KeyError: 'timed out'): check the name and the network, or pass the path of a folder",
        ),
        (
            yaml.YAMLError("the README\nis broken"),
            f"{NOT_LOADED} (YAMLError: the README is broken): check the name and the network, or pass the path of a "
            "folder",
        ),
    ],
    ids=["login", "gated", "missing", "revision", "script", "configs", "empty", "files", "footer", "time", "yaml"],
)
def test_a_dataset_of_the_hub_that_cannot_be_loaded_is_one_line_with_the_cause(error, message, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    for load, parameter in ((load_splits, "dataset"), (load_images, "images")):
        with pytest.raises(InputError) as caught:
            load(NAME)
        assert str(caught.value) == f"`{parameter}={NAME}` {message}"


@pytest.fixture
def folder(tmp_path):
    """Parquet files of two configurations, which the README.md names: small has 2 classes, large has 3."""
    for config, names in (("small", ["cat", "dog"]), ("large", ["cat", "dog", "owl"])):
        (tmp_path / config).mkdir()
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=names), "place": Value("string")})
        pictures = [Image.new("RGB", (8, 8), (9 * i, 0, 0)) for i in range(24)]
        rows = {"image": pictures, "label": [i % len(names) for i in range(24)], "place": ["x"] * 24}
        for split in ("train", "test"):
            Dataset.from_dict(rows, features=features).to_parquet(tmp_path / config / f"{split}.parquet")
    configs = [
        {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}.parquet"} for s in ("train", "test")]}
        for name in ("small", "large")
    ]
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return tmp_path


def test_one_of_several_configurations_is_chosen_by_its_name(folder):
    assert DatasetConfig(str(folder), dataset_config="small").load().class_names == ["cat", "dog"]
    splits = DatasetConfig(str(folder), dataset_config="large").load()
    assert splits.class_names == ["cat", "dog", "owl"]
    assert len(splits.test) == 24
    assert len(load_images(str(folder), dataset_config="large")) == 24
    stream = DatasetConfig(str(folder), dataset_config="small").load(stream=8)
    assert stream.class_names == ["cat", "dog"]


def test_a_configuration_that_is_missing_or_unknown_is_refused_with_the_names(folder):
    with pytest.raises(InputError) as caught:
        DatasetConfig(str(folder)).load()
    assert str(caught.value) == (
        f"`dataset={folder}` has several configurations: pass `dataset_config`, one of small, large"
    )
    with pytest.raises(InputError) as caught:
        DatasetConfig(str(folder), dataset_config="huge").load()
    assert str(caught.value) == f"`dataset_config=huge` is not a configuration of {folder}: choose one of small, large"


def test_a_folder_without_configurations_refuses_the_option(image_folder, parquet_folder):
    for plain in (image_folder, parquet_folder):
        with pytest.raises(InputError) as caught:
            DatasetConfig(str(plain), dataset_config="small").load()
        assert str(caught.value) == (
            f"`dataset_config=small` has no effect: {plain} has no README.md with configurations; leave the option out"
        )


def test_a_damaged_parquet_file_of_a_folder_is_one_line(folder):
    (folder / "README.md").unlink()
    path = folder / "small" / "train.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError) as caught:
        DatasetConfig(str(folder / "small")).load()
    assert str(caught.value).startswith(f"`dataset={folder}/small` cannot be read (")
    assert str(caught.value).endswith("): check its files")
