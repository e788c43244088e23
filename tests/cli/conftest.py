"""Fixtures: commands called as from the shell, and small models for them."""

import json

import pytest

from diffvit_timm.cli import main
from diffvit_timm.models.pretrained import save_pretrained


@pytest.fixture
def diffvit(capsys):
    """Function: the words of a command -> its result, from the last line of stdout."""

    def run(*words):
        capsys.readouterr()
        main([str(word) for word in words])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def refusal(capsys):
    """Function: the words of a command that must end with exit code 2 -> its one line on stderr, without 'error: '."""

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert caught.value.code == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.strip().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert captured.err.strip().splitlines()[-1] == lines[0]
        assert not captured.out
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture
def weights(tmp_path, tiny_model):
    """Function: name, keyword arguments -> a folder of the weights of a tiny model."""

    def make(name, **kwargs):
        save_pretrained(tiny_model(**kwargs), tmp_path / name, ["cat", "dog", "owl"])
        return tmp_path / name

    return make


@pytest.fixture
def photographs(image_folder):
    return [str(path) for path in sorted((image_folder / "test" / "cat").glob("*.png"))[:2]]
