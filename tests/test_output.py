"""Output folders are checked before anything is computed, and belong to one process at a time."""

import contextlib
import datetime
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import LeaseCompromise, SoftFileLease

from diffvit_timm import output
from diffvit_timm.errors import InputError
from diffvit_timm.output import LOCK, new_folder, output_folder


def enter(folder, name):
    with output_folder(folder, name):
        pass


def test_auto_names_a_folder_by_recipe_and_time_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with output_folder("auto", "finetune_pets") as path:
        assert re.fullmatch(r"runs/finetune_pets-\d{8}-\d{6}", path.as_posix())
    assert not list(tmp_path.iterdir())


def test_a_new_or_empty_folder_is_claimed_and_removed_again_if_it_was_created_in_vain(tmp_path):
    for folder in (tmp_path / "a" / "b", tmp_path):
        with output_folder(folder, "recipe") as path:
            assert path == folder
            assert [entry.name for entry in folder.iterdir()] == [LOCK]
        assert not list(tmp_path.iterdir())


def test_what_a_command_writes_stays_without_the_lock(tmp_path):
    with output_folder(tmp_path / "run", "recipe") as folder:
        (folder / "result.json").touch()
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["result.json"]


def test_an_error_leaves_nothing_behind_and_the_folder_free(tmp_path):
    def fail():
        with output_folder(tmp_path / "run", "recipe"):
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        assert not list(tmp_path.iterdir())


def test_auto_names_of_one_second_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(output_folder("auto", "train")) for _ in range(4)]
        for path in paths[:2]:
            (path / "result.json").touch()
    assert len(set(paths)) == 4
    assert sorted(Path("runs").iterdir()) == sorted(paths[:2])


HOLD = """
import sys, time
from filelock import SoftFileLease
lock = SoftFileLease(sys.argv[1], lease_duration=float(sys.argv[2]))
lock.acquire()
print("claimed", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, which has claimed the folder `run` as `claim_folder` does."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / LOCK), str(output.LEASE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"claimed\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_uses_is_refused_with_its_name(holder, tmp_path):
    expected = f"^`output={tmp_path}/run` is in use by process {holder.pid} on {socket.gethostname()}: wait until"
    with pytest.raises(InputError, match=expected):
        enter(tmp_path / "run", "train")
    assert holder.poll() is None


def test_the_claim_of_a_killed_process_is_taken_over_at_once(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    start = time.monotonic()
    with output_folder(tmp_path / "run", "train") as folder:
        assert folder == tmp_path / "run"
    assert time.monotonic() - start < 5


def test_the_claim_of_another_host_is_taken_over_if_it_is_not_renewed(holder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output, "LEASE", 1.0)
    holder.kill()
    holder.wait()
    lock = tmp_path / "run" / LOCK
    text = lock.read_text().replace(f"host={socket.gethostname()}", "host=node-17")
    lock.write_text(re.sub(r"duration=.*", "duration=1.0", text))
    with output_folder(tmp_path / "run", "train") as folder:
        (folder / "result.json").touch()
    assert f"is in use by process {holder.pid} on node-17; waiting up to 2 s" in capsys.readouterr().err


def test_a_process_that_lost_its_folder_ends(holder, tmp_path, monkeypatch):
    ends = []
    monkeypatch.setattr(output.os, "_exit", ends.append)
    lock = tmp_path / "run" / LOCK
    token = SoftFileLease(lock, lease_duration=output.LEASE).owner.token
    output._give_up(LeaseCompromise(str(lock), token, "owner-changed"))  # the same lock in a new file
    output._give_up(LeaseCompromise(str(tmp_path / "gone"), token, "marker-missing"))
    assert not ends
    output._give_up(LeaseCompromise(str(lock), "another token", "owner-changed"))
    assert ends == [1]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\x00"])
def test_a_damaged_lock_that_is_old_is_removed(tmp_path, content, capsys):
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(InputError, match=f"is in use by another process: .*the lock is {tmp_path / LOCK}"):
        enter(tmp_path, "train")
    os.utime(tmp_path / LOCK, (0, 0))
    with output_folder(tmp_path, "train"):
        assert f"{tmp_path / LOCK} was damaged and has been removed" in capsys.readouterr().err


def test_an_automatic_name_waits_for_nobody(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_own_host", lambda: "elsewhere")
    monkeypatch.chdir(tmp_path)
    now = datetime.datetime.now()
    monkeypatch.setattr(output.datetime, "datetime", type("Fixed", (), {"now": staticmethod(lambda: now)}))
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / f"train-{now:%Y%m%d-%H%M%S}")
    start = time.monotonic()
    with output_folder("auto", "train") as path:
        assert path.name.endswith("-2")
    assert time.monotonic() - start < 5


def test_only_the_main_process_claims(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with output_folder(tmp_path / "run", "train"):
        assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with output_folder("~/run", "recipe") as path:
        assert path == tmp_path / "run"


def test_a_folder_that_is_not_empty_is_refused_and_not_touched(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with (
        pytest.raises(InputError, match=rf"^`output={tmp_path}` is not empty: choose a new folder"),
        output_folder(tmp_path, "recipe"),
    ):
        pass
    assert (tmp_path / "result.json").read_text() == "{}"


def test_a_file_with_the_name_of_the_folder_is_refused(tmp_path):
    file = tmp_path / "run"
    file.write_text("mine")
    with pytest.raises(InputError, match=rf"^`output={file}` is a file"):
        enter(file, "recipe")


def test_a_folder_below_a_file_is_refused(tmp_path):
    file = tmp_path / "notes"
    file.write_text("mine")
    for path in (file / "run", file / "deeper" / "run"):
        with pytest.raises(InputError, match=rf"^`output={path}` cannot be written"):
            enter(path, "recipe")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to")
def test_a_folder_that_cannot_be_written_is_refused():
    with (
        pytest.raises(InputError, match=r"^`output=/proc/diffvit/run` cannot be written"),
        output_folder("/proc/diffvit/run", "recipe"),
    ):
        pass


def test_auto_is_refused_if_its_folder_cannot_be_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file with the name of the folder that auto needs")
    with (
        pytest.raises(InputError, match=r"^`output=runs/recipe-.*` cannot be written"),
        output_folder("auto", "recipe"),
    ):
        pass


def test_the_error_names_the_parameter_of_the_caller(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=rf"^`out={tmp_path}` is not empty"):
        new_folder(tmp_path, "out")
