"""Writes are atomic, and damage is noticed."""

import hashlib

import pytest

from diffvit_timm.checksums import check_checksums
from diffvit_timm.errors import InputError
from diffvit_timm.files import (
    atomic_folder,
    fill_folder,
    read_json,
    read_yaml,
    restore_folder,
    write_atomically,
)


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


@pytest.fixture
def summed(tmp_path):
    """A folder with two files and their checksums."""
    with atomic_folder(tmp_path / "best", "best/", "start again") as new:
        (new / "config.json").write_text("{}")
        (new / "weights").write_bytes(bytes(range(256)))
    return tmp_path / "best"


def test_the_checksums_are_those_of_sha256sum(summed):
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in summed.iterdir()}
    lines = [f"{digests[name]}  {name}\n" for name in ("config.json", "weights")]
    assert (summed / "SHA256SUMS").read_text() == "".join(lines)
    check_checksums(summed)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "weights", "SHA256SUMS"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b"\xff\x00\x80garbage" * 9),
        lambda path: path.write_bytes(path.read_text("latin-1").encode("utf-16")),
        flip_a_bit,
    ],
    ids=["missing", "empty", "half", "garbage", "other encoding", "flipped bit"],
)
def test_every_damage_to_a_folder_with_checksums_is_noticed(summed, name, damage):
    damage(summed / name)
    with pytest.raises(ValueError, match=r"is damaged|cannot be read|decode"):
        check_checksums(summed)


def test_other_files_in_a_folder_with_checksums_do_no_harm(summed):
    (summed / ".DS_Store").touch()
    (summed / "README.md").write_text("mine")
    check_checksums(summed)


@pytest.mark.parametrize("read", [read_json, read_yaml])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"a: [", b"7", b"[" * 100_000])
def test_a_damaged_settings_file_is_one_error_with_the_way_out(tmp_path, read, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/file is damaged \(.*\): start again$"):
        read(tmp_path / "file", "start again")


def test_a_settings_file_is_read(tmp_path):
    (tmp_path / "file").write_text('{"lr": 0.5}')
    assert read_json(tmp_path / "file", "") == read_yaml(tmp_path / "file", "") == {"lr": 0.5}
