"""The edges of a command: progress for people, a result for machines, one line for bad input, options and presets."""

import dataclasses
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pytest
import torch
import tyro
from torch.utils.data import DataLoader

from diffvit_timm import console
from diffvit_timm.cli import console as edges
from diffvit_timm.cli.flags import command_line_text, option_fields, positional_names
from diffvit_timm.cli.parser import parse_options
from diffvit_timm.data.datasets import load_splits
from diffvit_timm.data.images import ImageDataset
from diffvit_timm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    """Learning rate."""
    img_size: tuple[int, ...] = ()
    """Image size."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of all kinds: positional, nested, and a switch."""

    source: tyro.conf.Positional[str] = "model"
    """Source."""
    inner: Annotated[Inner, tyro.conf.arg(name="")] = Inner()
    compile: bool = False
    """Compile."""

    def __post_init__(self):
        if self.inner.lr <= 0:
            raise InputError(f"`lr={self.inner.lr}` must be above 0")


def run(main, *argv):
    edges.run(Options, lambda options: main(), list(argv), "A command.", "diffvit command")


def test_a_result_is_the_last_line_on_stdout(capsys):
    def main():
        print("something a library printed")
        console.log0("for people")
        return {"test_accuracy": 0.5, "lambda": [0.1]}

    run(main)
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1]) == {"test_accuracy": 0.5, "lambda": [0.1]}
    assert captured.err == "for people\n"


def test_a_command_that_printed_its_answer_has_no_result(capsys):
    run(lambda: print("answer"))
    assert capsys.readouterr().out == "answer\n"


def failing(error):
    def main():
        raise error

    return main


def test_bad_input_is_one_line_on_stderr_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        run(failing(InputError("`lr=0` must be above 0\nand a second line of some library")))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == "error: --lr 0 must be above 0 and a second line of some library\n"
    assert not captured.out


def test_a_full_disk_is_one_line_wherever_it_is_met(capsys):
    with pytest.raises(SystemExit) as caught:
        run(failing(OSError(errno.ENOSPC, "No space left on device", "runs/training.png")))
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: [Errno 28] No space left on device: 'runs/training.png': free some space and start again\n"
    )


@pytest.fixture
def stderr_without_reader(monkeypatch):
    """stderr as a pipe whose reader has gone, as after `2>&1 | head`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        yield stream


def test_a_command_goes_on_when_nobody_reads_its_log(stderr_without_reader, capfd):
    def main():
        for number in range(3):
            console.log0(f"line {number}")
        print("a warning of a library", file=sys.stderr, flush=True)
        return {"accuracy": 0.5}

    run(main)
    assert json.loads(capfd.readouterr().out) == {"accuracy": 0.5}
    stderr_without_reader.flush()  # as Python does at its end


def test_a_command_goes_on_when_the_disk_of_its_log_is_full(capsys, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    run(lambda: console.log0("line") or {"accuracy": 0.5})
    assert json.loads(capsys.readouterr().out) == {"accuracy": 0.5}


class Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_that_loads_images_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda: next(iter(DataLoader(Killed(), num_workers=1))))
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: a process that loads images died (DataLoader worker")
    assert line.endswith("use fewer workers or a smaller batch size\n")


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise RuntimeError("a bug of ours")


def test_an_error_in_a_process_that_loads_images_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug of ours"):
        run(lambda: next(iter(DataLoader(Broken(), num_workers=1))))


def test_a_lack_of_memory_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda: torch.empty(2**60))
    assert stop.value.code == 2
    assert re.match(r"error: the memory is too small \(.*\): use a smaller batch size.*\n$", capsys.readouterr().err)


def test_letters_that_stdout_cannot_show_are_escapes(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    run(lambda: print("Grün 犬"))
    assert stdout.buffer.getvalue() == b"Gr\\xfcn \\u72ac\n"


def test_ctrl_c_is_one_line_too(capsys):
    with pytest.raises(SystemExit) as caught:
        run(failing(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(PermissionError):
        run(failing(PermissionError()))
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()))
    with pytest.raises(ValueError, match="not the user's"):
        run(failing(ValueError("not the user's")))


def test_control_characters_in_names_do_not_reach_the_terminal(capsys):
    console.log0("class \x1b[2Jcat\u202e\nclass Größe 猫")
    assert capsys.readouterr().err == "class \\x1b[2Jcat\\u202e\nclass Größe 猫\n"
    with pytest.raises(SystemExit):
        run(failing(InputError("`dataset=a\x07b` is not a folder")))
    assert "a\\x07b" in capsys.readouterr().err


def test_other_processes_print_only_an_error_of_their_own(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run(lambda: {"test_accuracy": 0.5})
    console.log0("a line")
    assert capsys.readouterr() == ("", "")
    waits = []
    clock = SimpleNamespace(sleep=waits.append)  # the main process speaks first; the launcher ends the others
    monkeypatch.setattr(edges, "time", clock)
    with pytest.raises(SystemExit) as caught:
        run(failing(InputError("`lr=0` must be above 0")))
    assert caught.value.code == 2
    assert waits
    assert capsys.readouterr().err == "error: --lr 0 must be above 0\n"


def test_a_corrupt_image_met_by_a_worker_is_still_one_line(make_image_folder, capsys):
    folder = make_image_folder(train=10, test=1)
    broken = folder / "test" / "cat" / "cat-00.png"
    broken.write_bytes(broken.read_bytes()[:50])
    dataset = ImageDataset(load_splits(str(folder)).test, lambda image, seed: np.asarray(image))
    capsys.readouterr()  # the bars of datasets

    with pytest.raises(SystemExit):
        run(lambda: dict(enumerate(DataLoader(dataset, batch_size=1, num_workers=1))))
    error = capsys.readouterr().err
    assert error.startswith(f"error: {broken} does not decode")
    assert error.count("\n") == 1


def test_numbers_in_a_result_have_five_significant_digits(capsys):
    result = {
        "test_accuracy": 0.123456789, "images": 123456789, "tiny": 1.23456789e-9, "large": 123456.789, "ok": True,
        "none": None, "name": "0.123456789", "rows": [{"low": 1 / 3}], "interval": (2 / 3, 1.0),
    }  # fmt: skip
    run(lambda: result)
    expected = {
        "test_accuracy": 0.12346, "images": 123456789, "tiny": 1.2346e-9, "large": 123460.0, "ok": True,
        "none": None, "name": "0.123456789", "rows": [{"low": 0.33333}], "interval": [0.66667, 1.0],
    }  # fmt: skip
    assert json.loads(capsys.readouterr().out) == expected
    assert edges.rounded(result) == expected


def test_options_are_found_in_nested_dataclasses_and_by_position():
    assert list(option_fields(Options)) == ["source", "lr", "img_size", "compile"]
    assert option_fields(Options)["compile"] is bool
    assert positional_names(Options) == ["source"]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("`lr=0` must be above 0", "--lr 0 must be above 0"),
        ("pass `img_size`", "pass --img-size"),
        ("`img_size=16 24` is too small for `lr=1e-3`", "--img-size 16 24 is too small for --lr 1e-3"),
        ("pass `compile=True`", "pass --compile"),
        ("pass `compile=False`", "pass --no-compile"),
        ("`source=vit_tinny` is not known", "SOURCE vit_tinny is not known"),
        ("`source` is empty", "SOURCE is empty"),
        ("`momentum=0.9` and `head` are of others", "momentum=0.9 and head are of others"),
        ("`lr=` is empty", "--lr  is empty"),
        ("a `free text` and class lr=0 stay", "a `free text` and class lr=0 stay"),
    ],
)
def test_parameters_of_a_message_become_flags(message, text):
    assert command_line_text(message, option_fields(Options), positional_names(Options)) == text


def test_without_options_the_parameters_only_lose_their_backquotes():
    assert command_line_text("`lr=0` must be above `weight_decay`", ()) == "lr=0 must be above weight_decay"


def test_options_of_nested_parts_are_parsed_without_a_prefix():
    options = parse_options(Options, ["net", "--lr=0.5", "--img-size", "16", "24", "--compile"])
    assert options == Options("net", Inner(0.5, (16, 24)), True)
    assert parse_options(Options, ["--no-compile", "--img_size", "8"]) == Options("model", Inner(0.1, (8,)), False)


def test_a_value_that_an_option_refuses_is_an_error_that_comes_through_the_parser(capsys):
    with pytest.raises(InputError, match=r"^`lr=-1\.0` must be above 0$"):
        parse_options(Options, ["--lr", "-1"])
    assert capsys.readouterr() == ("", "")


def test_a_value_that_is_not_a_number_is_bad_input(capsys):
    with pytest.raises(InputError, match=r"^--lr fast: write a number, such as 0\.001$"):
        parse_options(Options, ["--lr", "fast"], prog="diffvit command")
    assert capsys.readouterr() == ("", "")


def test_an_argument_after_a_numeric_option_need_not_be_a_number():
    assert parse_options(Options, ["--lr", "0.5", "Möwe"]) == Options("Möwe", Inner(lr=0.5))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning-rate", "1"], "--learning-rate is not an option of diffvit command: did you mean --lr?"),
        (["--image_size=16"], "--image-size is not an option of diffvit command: did you mean --img-size?"),
        (["--compil"], "--compil is not an option of diffvit command: did you mean --compile?"),
        (["--source", "x"], "--source is not an option of diffvit command: diffvit command --help lists its options"),
        (["--no-lr"], "--no-lr is not an option of diffvit command"),
        (["--probe", "knn"], "--probe is not an option of diffvit command: diffvit compare probes does this"),
        (["--lr-sweep"], "--lr-sweep is not an option of diffvit command: diffvit study rates does this"),
        (["--demo"], "--demo is not an option of diffvit command"),
        (["--config"], "--config needs a preset ("),
        (["--config", "--lr", "1"], "--config needs a preset ("),
        (["--config", "{file}", "--lr", "1"], "--config {file}: learning_rate is not an option of diffvit command"),
    ],
)
def test_an_unknown_option_is_named_with_the_one_that_was_probably_meant(words, message, tmp_path):
    file = tmp_path / "preset.yaml"
    file.write_text("learning_rate: 1\n")
    with pytest.raises(InputError) as caught:
        parse_options(Options, [word.format(file=file) for word in words], prog="diffvit command")
    assert str(caught.value).startswith(message.format(file=file))


def test_options_override_a_preset_wherever_they_stand(tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 0.5\nimg_size: [16, 24]\ncompile: true\n")
    (tmp_path / "mine.yaml").write_text(f"config: {tmp_path}/base.yaml\nlr: 0.25\ncompile: false\n")
    (tmp_path / "empty.yaml").write_text("lr: null\n")
    base, mine, empty = (["--config", str(tmp_path / f"{name}.yaml")] for name in ("base", "mine", "empty"))
    assert parse_options(Options, base) == Options("model", Inner(0.5, (16, 24)), True)
    assert parse_options(Options, mine) == Options("model", Inner(0.25, (16, 24)), False)
    assert parse_options(Options, ["--lr", "1", *mine, "net"]) == Options("net", Inner(1.0, (16, 24)), False)
    assert parse_options(Options, empty) == Options()


@pytest.mark.parametrize("text", ["- a list", "word", "lr: [", "\x00"])
def test_a_preset_that_is_not_a_mapping_is_refused(text, tmp_path):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"^--config {tmp_path}/broken.yaml (is not a mapping|cannot be read)"):
        parse_options(Options, ["--config", f"{tmp_path}/broken.yaml"])


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
