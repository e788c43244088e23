"""Output folders are checked before anything is computed, and writes are atomic."""

import re
from pathlib import Path

import pytest

from diffvit_timm.errors import InputError
from diffvit_timm.files import atomic_folder, fill_folder, new_folder, output_folder, restore_folder, write_atomically


def test_auto_names_a_folder_by_recipe_and_time_and_creates_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = output_folder("auto", "finetune_pets")
    assert re.fullmatch(r"runs/finetune_pets-\d{8}-\d{6}", path.as_posix())
    assert not list(tmp_path.iterdir())


def test_a_new_or_empty_folder_is_accepted_and_not_created_yet(tmp_path):
    new = tmp_path / "a" / "b"
    assert output_folder(new, "recipe") == new
    assert not (tmp_path / "a").exists()
    assert output_folder(tmp_path, "recipe") == tmp_path


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_folder("~/run", "recipe") == tmp_path / "run"


def test_a_folder_that_is_not_empty_is_refused_and_not_touched(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^`output={tmp_path}` is not empty: choose a new folder"):
        output_folder(tmp_path, "recipe")
    assert (tmp_path / "result.json").read_text() == "{}"


def test_a_file_with_the_name_of_the_folder_is_refused(tmp_path):
    file = tmp_path / "run"
    file.write_text("mine")
    with pytest.raises(InputError, match=rf"^`output={file}` is a file"):
        output_folder(file, "recipe")


def test_a_folder_below_a_file_is_refused(tmp_path):
    file = tmp_path / "notes"
    file.write_text("mine")
    for path in (file / "run", file / "deeper" / "run"):
        with pytest.raises(InputError, match=rf"^`output={path}` cannot be written"):
            output_folder(path, "recipe")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to")
def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(InputError, match=r"^`output=/proc/diffvit/run` cannot be written"):
        output_folder("/proc/diffvit/run", "recipe")


def test_auto_is_refused_if_its_folder_cannot_be_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file with the name of the folder that auto needs")
    with pytest.raises(InputError, match=r"^`output=runs/recipe-.*` cannot be written"):
        output_folder("auto", "recipe")


def test_checking_a_folder_leaves_nothing_behind(tmp_path):
    output_folder(tmp_path / "run", "recipe")
    output_folder(tmp_path, "recipe")
    assert not list(tmp_path.iterdir())


def test_the_error_names_the_parameter_of_the_caller(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=rf"^`out={tmp_path}` is not empty"):
        new_folder(tmp_path, "out")


def run_out_of_space(context):
    """Write half a file into the folder of a context, then meet a full disk."""
    with context as folder:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_old_folder(tmp_path):
    with atomic_folder(tmp_path / "best", "best/", "start again") as new:
        (new / "weights").write_text("old")
    with pytest.raises(InputError, match=r"^best/ cannot be written to .*No space left.*: free some space and start"):
        run_out_of_space(atomic_folder(tmp_path / "best", "best/", "start again"))
    assert (tmp_path / "best" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_is_restored_after_a_kill_between_the_two_renames(tmp_path):
    (tmp_path / "best.old").mkdir()
    restore_folder(tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_of_the_user_is_filled_completely_or_not_at_all(tmp_path):
    with pytest.raises(InputError, match=r"^the run cannot be written to .*: free some space and pull again$"):
        run_out_of_space(fill_folder(tmp_path, "the run", "pull again"))
    assert not list(tmp_path.iterdir())
    with fill_folder(tmp_path, "the run", "pull again") as folder:
        (folder / "weights").write_text("all")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_text_file_is_replaced_and_leaves_no_other_file(tmp_path):
    for text in ("old", "new"):
        write_atomically(tmp_path / "result.json", text)
        assert (tmp_path / "result.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
