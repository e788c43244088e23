"""A fingerprint recognises data wherever they are, and images that two splits share are counted."""

import shutil
from pathlib import Path

import pytest

from diffvit_timm.data import fingerprint as module
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.fingerprint import fingerprint, shared_images
from diffvit_timm.data.stream import Stream


@pytest.fixture
def folder(make_image_folder):
    return make_image_folder(train=4, val=2, test=3)


def fingerprints(folder):
    return load_splits(str(folder)).fingerprints


def test_a_folder_that_moved_has_the_same_fingerprints(folder, tmp_path):
    before = fingerprints(folder)
    assert len(set(before.values())) == 3
    moved = shutil.move(folder, tmp_path / "scratch-17")
    assert fingerprints(moved) == before


def replace_pixel(folder):
    """Change one byte of one image, and not its size."""
    path = folder / "train" / "dog" / "dog-01.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        replace_pixel,
        lambda folder: (folder / "train" / "dog" / "dog-01.png").unlink(),
        lambda folder: (folder / "train" / "dog" / "dog-01.png").rename(folder / "train" / "cat" / "new.png"),
        lambda folder: shutil.copy(folder / "train" / "dog" / "dog-01.png", folder / "train" / "dog" / "dog-02.png"),
    ],
    ids=["a byte", "a missing image", "another label", "another image"],
)
def test_every_change_of_the_training_images_changes_their_fingerprint_only(folder, change):
    before = fingerprints(folder)
    change(folder)
    after = fingerprints(folder)
    assert after["train"] != before["train"]
    assert (after["val"], after["test"]) == (before["val"], before["test"])


def test_beyond_the_sample_the_sizes_count(folder, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 2)  # the first and the last image
    before = fingerprints(folder)
    replace_pixel(folder)
    assert fingerprints(folder) == before
    (folder / "train" / "dog" / "dog-01.png").write_bytes(b"of another size")
    assert fingerprints(folder)["train"] != before["train"]


@pytest.mark.parametrize("stream", [0, 20])
def test_parquet_files_and_streams_that_moved_have_the_same_fingerprints(stream_folder, tmp_path, stream):
    moved = shutil.copytree(stream_folder, tmp_path / "scratch-17")
    before, after = (load_splits(str(folder), stream=stream).fingerprints for folder in (stream_folder, moved))
    assert len(set(before.values())) == 3
    assert after == before


def test_the_first_images_of_a_stream_count(stream_folder):
    stream = load_splits(str(stream_folder), stream=20).train
    others = Stream(stream.rows.skip(1), stream.length)
    assert fingerprint(stream) != fingerprint(others)


def test_a_missing_file_and_an_empty_image_are_left_to_the_training(folder):
    splits = load_splits(str(folder))
    (folder / "train" / "dog" / "dog-01.png").unlink()
    assert len(fingerprint(splits.train)) == 16
    empty = splits.test.select([0]).map(
        lambda _: {"image": {"bytes": b"", "path": None}}, features=splits.test.features
    )
    assert len(fingerprint(empty)) == 16


def test_shared_images_are_counted_once_each_and_by_their_bytes(folder):
    assert shared_images({"train": load_splits(str(folder)).train, "test": load_splits(str(folder)).test}) == {}
    for name in ("a", "b"):  # twice the same image, under other names and another label
        shutil.copy(folder / "test" / "cat" / "cat-00.png", folder / "train" / "dog" / f"{name}.png")
    shutil.copy(folder / "val" / "owl" / "owl-00.png", folder / "train" / "owl" / "c.png")
    splits = load_splits(str(folder))
    found = shared_images({"train": splits.train, "val": splits.val, "test": splits.test})
    assert found == {("train", "test"): 1, ("train", "val"): 1}


def test_the_sizes_of_images_are_those_of_their_files(folder):
    test = load_splits(str(folder)).test
    assert module._image_sizes(test).tolist() == [Path(image["path"]).stat().st_size for image in test["image"]]
