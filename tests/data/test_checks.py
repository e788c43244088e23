"""Validation and test images are decoded before a training, once per content."""

import shutil

import pytest

from diffvit_timm.data import checks
from diffvit_timm.data.checks import check_images
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.errors import InputError


@pytest.fixture
def folder(make_image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return make_image_folder(train=4, val=2, test=3)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_found_with_its_file(folder, split, workers, monkeypatch):
    monkeypatch.setattr(checks, "FEW", 0)
    broken = folder / split / "owl" / "owl-01.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{broken} does not decode"):
        check_images(load_splits(str(folder)), workers)


def test_the_same_data_are_decoded_once_also_after_a_move(folder, tmp_path, monkeypatch):
    decoded = []
    decode = checks.decode_image
    monkeypatch.setattr(checks, "decode_image", lambda *args: (decoded.append(args[2]), decode(*args))[1])
    check_images(load_splits(str(folder)))
    assert len(decoded) == 6 + 9
    moved = shutil.move(folder, tmp_path / "elsewhere")
    check_images(load_splits(str(moved)))
    assert len(decoded) == 6 + 9
    (moved / "test" / "owl" / "owl-00.png").unlink()
    check_images(load_splits(str(moved)))
    assert len(decoded) == 6 + 9 + 6 + 8


def test_a_failed_check_is_not_taken_for_done(folder):
    (folder / "test" / "owl" / "owl-01.png").write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(InputError, match="does not decode"):
            check_images(load_splits(str(folder)))


def test_images_in_two_splits_are_warned_about_every_time(folder, capsys):
    shutil.copy(folder / "test" / "cat" / "cat-00.png", folder / "train" / "cat" / "copy.png")
    for _ in range(2):
        check_images(load_splits(str(folder)))
        assert capsys.readouterr().err == "warning: 1 image of train is also in test, byte for byte\n"


def test_without_a_cache_the_check_is_made_every_time(folder, tmp_path, capsys):
    (tmp_path / "assets").write_text("a file with the name of the folder")
    check_images(load_splits(str(folder)))
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_does_not_end_the_training(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checks.Path, "write_text", full)
    check_images(load_splits(str(folder)))


def test_a_stream_is_checked_without_its_training_images(folder, stream_folder, monkeypatch):
    decoded = []
    monkeypatch.setattr(checks, "decode_image", lambda *args: decoded.append(args[2]))
    splits = load_splits(str(stream_folder), stream=20)
    check_images(splits)
    assert len(decoded) == len(splits.val) + len(splits.test) == 30
