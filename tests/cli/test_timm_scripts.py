"""diffvit timm runs a script as python does, after the models are registered."""

import sys

import pytest

from diffvit_timm.cli import main

SCRIPT = """
import sys
import timm
from beside import CODE

if __name__ == "__main__":
    model = timm.create_model(sys.argv[1], embed_dim=48, depth=1, num_heads=3)
    print(type(model).__name__, sys.argv[1:], sys.path[0], __file__)
    sys.exit(CODE)
"""


@pytest.fixture(autouse=True)
def restore(monkeypatch):
    """Undo what a script changes in this process."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("beside", None)


def test_a_script_sees_our_models_and_its_own_arguments_and_folder(tmp_path, capsys):
    (tmp_path / "beside.py").write_text("CODE = 7\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    with pytest.raises(SystemExit) as caught:
        main(["timm", str(tmp_path / "script.py"), "diffvit_tiny_patch16", "--help", "--model=x"])
    assert caught.value.code == 7
    arguments = ["diffvit_tiny_patch16", "--help", "--model=x"]
    assert capsys.readouterr().out == f"DiffVisionTransformer {arguments} {tmp_path} {tmp_path / 'script.py'}\n"


def test_the_error_of_a_script_is_its_own(tmp_path):
    (tmp_path / "script.py").write_text("raise KeyError('of the script')\n")
    with pytest.raises(KeyError, match="of the script"):
        main(["timm", str(tmp_path / "script.py")])


def test_a_missing_script_is_one_line_that_says_where_the_scripts_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["timm", str(tmp_path / "validate.py")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: SCRIPT {tmp_path / 'validate.py'} is not a file: give the path of a script from timm"
    )


def test_without_a_script_it_prints_its_help_and_fails(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["timm"])
    assert caught.value.code == 2
    assert capsys.readouterr().out.startswith("usage: diffvit timm SCRIPT [ARGS ...]\n")
