"""The file .env: it gives a token and a repository, overrides nothing, and nothing of it is recorded."""

import os

import pytest

from diffvit_timm.cli import main
from diffvit_timm.cli.env_file import read_env_file
from diffvit_timm.errors import InputError


@pytest.fixture
def env_file(tmp_path, monkeypatch):
    """Function: text -> it is in .env, and read; the environment is restored later."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HF_REPOSITORY", "OTHER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def read(text):
        (tmp_path / ".env").write_text(text) if isinstance(text, str) else (tmp_path / ".env").write_bytes(text)
        read_env_file()

    return read


def test_the_token_and_the_repository_are_read_and_nothing_else(env_file):
    env_file("# mine\nHF_TOKEN=hf_secret\nexport HF_REPOSITORY='me/all runs'\nOTHER=1\n")
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert os.environ["HF_REPOSITORY"] == "me/all runs"
    assert "OTHER" not in os.environ


def test_what_is_set_in_the_environment_comes_first(env_file):
    os.environ["HF_TOKEN"] = "hf_given"
    env_file("HF_TOKEN=hf_file")
    assert os.environ["HF_TOKEN"] == "hf_given"


def test_a_folder_without_the_file_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    read_env_file()
    assert dict(os.environ) == before


def test_a_file_that_is_not_text_is_refused_without_showing_it(env_file):
    with pytest.raises(
        InputError, match=r"\.env cannot be read \(UnicodeDecodeError\): correct or delete it$"
    ) as caught:
        env_file(b"HF_TOKEN=hf_\xff\xfe")
    assert "hf_" not in str(caught.value)


def test_no_word_of_the_file_reaches_the_output_or_the_run(env_file, image_folder, tmp_path, capsys):
    env_file("HF_TOKEN=hf_very_secret\nHF_REPOSITORY=me/hidden")
    run = tmp_path / "run"
    short = ["--dataset", str(image_folder), "--max-steps", "1", "--batch-size", "8", "--output", str(run)]
    main(["train", "--config", "mnist_nano", *short])
    captured = capsys.readouterr()
    assert "1 updates" in captured.err
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    for secret in ("hf_very_secret", "me/hidden"):
        assert secret.encode() not in written
        assert secret not in captured.out + captured.err
