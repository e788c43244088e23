"""What a recipe prints: progress for people, a result for machines, and one line for bad input."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.errors import InputError
from diffvit_timm import console

ROOT = Path(__file__).resolve().parents[2]


def test_a_result_is_the_last_line_on_stdout(capsys):
    def main():
        print("something a library printed")
        console.log0("for people")
        return {"test_accuracy": 0.5, "lambda": [0.1]}

    console.run(main)
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1]) == {"test_accuracy": 0.5, "lambda": [0.1]}
    assert captured.err == "for people\n"


def failing(error):
    def main():
        raise error

    return main


def test_bad_input_is_one_line_on_stderr_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        console.run(failing(InputError("--lr 0 must be above 0\nand a second line of some library")))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == "error: --lr 0 must be above 0 and a second line of some library\n"
    assert not captured.out


def test_a_full_disk_is_one_line_wherever_it_is_met(capsys):
    with pytest.raises(SystemExit) as caught:
        console.run(failing(OSError(errno.ENOSPC, "No space left on device", "runs/training.png")))
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: [Errno 28] No space left on device: 'runs/training.png': free some space and start again\n"
    )


def test_ctrl_c_is_one_line_too(capsys):
    with pytest.raises(SystemExit) as caught:
        console.run(failing(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(PermissionError):
        console.run(failing(PermissionError()))
    with pytest.raises(ZeroDivisionError):
        console.run(failing(ZeroDivisionError()))
    with pytest.raises(ValueError, match="not the user's"):
        console.run(failing(ValueError("not the user's")))


def test_other_processes_print_only_an_error_of_their_own(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    console.run(lambda: {"test_accuracy": 0.5})
    console.log0("a line")
    assert capsys.readouterr() == ("", "")
    waits = []
    monkeypatch.setattr(
        console.time, "sleep", waits.append
    )  # the main process speaks first; the launcher ends the others
    with pytest.raises(SystemExit) as caught:
        console.run(failing(InputError("--lr 0 must be above 0")))
    assert caught.value.code == 2
    assert waits
    assert capsys.readouterr().err == "error: --lr 0 must be above 0\n"


def test_a_corrupt_image_met_by_a_worker_is_still_one_line(make_image_folder, capsys):
    folder = make_image_folder(train=10, test=1)
    broken = folder / "test" / "cat" / "cat-00.png"
    broken.write_bytes(broken.read_bytes()[:50])
    dataset = ImageDataset(load_splits(str(folder)).test, lambda image, seed: np.asarray(image))
    capsys.readouterr()  # the bars of datasets

    def main():
        return dict(enumerate(DataLoader(dataset, batch_size=1, num_workers=1)))

    with pytest.raises(SystemExit):
        console.run(main)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {broken} does not decode")
    assert error.count("\n") == 1


def test_progress_into_a_file_is_a_line_now_and_then_that_keeps_the_last_text(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with console.progress("epoch 1", 3) as advance:
        for text in ("loss 2.000", "", "loss 1.000"):
            advance(text)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1 1/3 loss 2.000",
        "epoch 1 2/3 loss 2.000",
        "epoch 1 3/3 loss 1.000",
    ]


def test_progress_into_a_file_does_not_fill_it(capsys):
    with console.progress("epoch 1", 500) as advance:
        for _ in range(500):
            advance("loss 2.000")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_show_no_progress(capsys, monkeypatch, terminal):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("RANK", "1")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with console.progress("epoch 1", 1) as advance:
        advance("loss 2.000")
    console.log0("epoch 1 is over")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_no_lines(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("epoch 1", 2) as advance:
        advance("loss 2.000")
        advance("loss 1.000")
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert "epoch 1 1/2 loss" not in captured.err
    assert not captured.out


def test_a_recipe_with_a_wrong_folder_ends_with_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "finetune_pets.py"), "--dataset", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "RANK": "0"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --dataset {tmp_path}/nowhere is not a folder")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
