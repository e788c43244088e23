"""The options of a dataset: short names, values that are refused, and loading."""

import inspect

import pytest

from diffvit_timm.data.config import SHORT_NAMES, DataConfig, DatasetConfig
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.errors import InputError


@pytest.mark.parametrize("kind", [DatasetConfig, DataConfig])
@pytest.mark.parametrize(
    ("name", "dataset", "test_share"),
    [
        ("pets", "timm/oxford-iiit-pet", 0.0),
        ("cifar10", "uoft-cs/cifar10", 0.0),
        ("cifar100", "uoft-cs/cifar100", 0.0),
        ("mnist", "ylecun/mnist", 0.0),
        ("fashion_mnist", "zalando-datasets/fashion_mnist", 0.0),
        ("bach", "1aurent/BACH", 0.25),
        ("clutter", "ylecun/mnist+clutter", 0.0),
    ],
)
def test_a_short_name_is_replaced_by_the_options_it_stands_for(kind, name, dataset, test_share):
    config = kind(name)
    assert (config.dataset, config.label_column, config.test_share) == (dataset, "auto", test_share)
    assert kind(config.dataset, test_share=test_share) == config


def test_without_an_option_the_same_share_is_held_out_for_validation_everywhere():
    share = inspect.signature(load_splits).parameters["val_share"].default
    assert share == DataConfig("pets").val_share == inspect.signature(DataConfig.load).parameters["val_share"].default


def test_every_short_name_is_tested_and_none_stands_for_another():
    assert set(SHORT_NAMES) == {"pets", "cifar10", "cifar100", "mnist", "fashion_mnist", "bach", "clutter"}
    assert not {options["dataset"] for options in SHORT_NAMES.values()} & set(SHORT_NAMES)


def test_an_option_that_was_given_is_kept_beside_a_short_name():
    assert DatasetConfig("bach", label_column="grade").label_column == "grade"
    assert DatasetConfig("bach", test_share=0.5).test_share == 0.5
    assert DatasetConfig("bach", test_share=0.5).dataset == "1aurent/BACH"


def test_a_folder_comes_before_the_short_name_that_it_is_called_by(tmp_path, monkeypatch):
    (tmp_path / "bach").mkdir()
    monkeypatch.chdir(tmp_path)
    config = DatasetConfig("bach")
    assert (config.dataset, config.test_share) == ("bach", 0.0)
    assert DatasetConfig("pets").dataset == "timm/oxford-iiit-pet"


@pytest.mark.parametrize("name", ["somebody/pets", "cifar", "CIFAR10"])
def test_another_name_is_left_as_it_is(name):
    assert DatasetConfig(name).dataset == name


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_test_share_out_of_range_is_refused(share):
    with pytest.raises(InputError) as caught:
        DatasetConfig("data", test_share=share)
    assert str(caught.value) == f"`test_share={share}` must be in [0, 1)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_train_samples=-1), "`max_train_samples=-1` must not be negative"),
        (dict(samples_per_class=-1), "`samples_per_class=-1` must not be negative"),
        (
            dict(samples_per_class=2, max_train_samples=9),
            "`samples_per_class=2` and `max_train_samples` exclude each other: give one of them",
        ),
        (dict(sample_seed=1), "`sample_seed=1` has no effect without `samples_per_class`"),
        (dict(stream=64, samples_per_class=2), "`samples_per_class=2` needs stored images: leave out `stream`"),
        (dict(stream=-1), "`stream=-1` must not be negative"),
        (dict(input_noise=-0.1), "`input_noise=-0.1` must not be negative"),
        (dict(workers=-1), "`workers=-1` must not be negative"),
        (dict(label_noise=1.0), "`label_noise=1.0` must be in [0, 1)"),
        (dict(repeated_augmentation=0), "`repeated_augmentation=0` must be at least 1"),
        (dict(crop_scale=1.5), "`crop_scale=1.5` must be in (0, 1]"),
        (dict(crop_scale=0.2, augment="flip"), "`crop_scale=0.2` has no effect without `augment=crop`"),
        (dict(stream=64, test_share=0.2), "`test_share=0.2` needs stored images: leave out `stream`"),
        (dict(stream=64, group_column="patient"), "`group_column=patient` needs stored images: leave out `stream`"),
        (dict(stream=64, label_noise=0.2), "`label_noise=0.2` needs stored images: leave out `stream`"),
        (dict(stream=64, input_noise=0.1), "`input_noise=0.1` needs stored images: leave out `stream`"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_the_parameter_and_the_reason(options, message):
    with pytest.raises(InputError) as caught:
        DataConfig("data", **options)
    assert str(caught.value) == message


def test_bach_cannot_be_streamed_because_its_test_images_are_held_out():
    with pytest.raises(InputError, match=r"^`test_share=0\.25` needs stored images"):
        DataConfig("bach", stream=64)


def test_load_passes_every_option_on(image_folder, stream_folder, splits):
    loaded = DatasetConfig(str(image_folder)).load()
    assert loaded.class_names == splits.class_names
    for name in ("train", "val", "test"):
        assert getattr(loaded, name)["image"] == getattr(splits, name)["image"]
    held_out = DatasetConfig(str(image_folder), test_share=0.25).load()
    assert len(held_out.test) == 9  # a quarter of the 36 training images
    assert len(DatasetConfig(str(stream_folder)).load(stream=20).train) == 20
    for options, message in (
        (dict(image_column="photo"), "`image_column=photo` is not an image column"),
        (dict(label_column="breed"), "`label_column=breed` is not a class label"),
        (dict(group_column="patient"), "`group_column=patient` is not a column"),
    ):
        with pytest.raises(InputError, match=message):
            DatasetConfig(str(image_folder), **options).load()
