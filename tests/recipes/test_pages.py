"""The recipes that are pages: each calls a command, its commands parse, and its launch files are valid."""

import importlib
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from diffvit_timm.cli.parser import parse_options

RECIPES = Path(__file__).parents[2] / "recipes"
LAUNCH_FILES = sorted((RECIPES / "configs" / "accelerate").glob("*.yaml"))
PAGES = {
    "finetune_pets": "train --config pets",
    "train_cifar": "train --config scratch",
    "ablate": "study ablation",
    "scaling_laws": "study scaling",
}


@pytest.fixture
def called(monkeypatch):
    """Function: page, options -> the arguments that it gives the console command."""

    def run(name, *options):
        calls = []
        monkeypatch.setattr("diffvit_timm.cli.main", calls.append)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
        return calls

    return run


@pytest.mark.parametrize(("name", "command"), PAGES.items())
def test_a_recipe_is_a_page_that_calls_a_command(name, command, called):
    assert called(name, "--seed", "3") == [[*command.split(), "--seed", "3"]]
    text = (RECIPES / f"{name}.py").read_text()
    assert f"diffvit {command}" in text
    assert len(text.splitlines()) <= 30
    for page in re.findall(r"recipes/results/\w+\.md", text):
        assert (RECIPES.parent / page).is_file()


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_parse(name, called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (RECIPES / f"{name}.py").read_text().split('"""')[1].replace("\\\\\n", " ")
    commands = re.findall(rf"^ {{4}}(?:python|accelerate launch) recipes/{name}\.py(.*)$", text, re.MULTILINE)
    assert len(commands) >= 2  # the one with the expected number, and a small one
    for options in commands:
        words = shlex.split(options, comments=True)
        (arguments,) = called(name, *words)
        depth = 2 if arguments[0] == "study" else 1
        module = importlib.import_module(f"diffvit_timm.cli.commands.{'_'.join(arguments[:depth])}")
        parse_options(module.Options, arguments[depth:])


def test_the_recipe_of_readme_starts_as_a_script(tmp_path):
    command = [sys.executable, str(RECIPES / "finetune_pets.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: diffvit train")
    assert "--batch-size INT" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_launch_files_are_what_accelerate_reads(path):
    config = load_config_from_file(str(path))
    assert path.name in path.read_text().splitlines()[0]  # the command that uses it
    assert config.num_processes >= 1


def test_the_slurm_script_parses():
    subprocess.run(["bash", "-n", RECIPES / "configs" / "slurm.sh"], check=True)
