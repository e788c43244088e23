"""The error of a push that fails ends with the command that pushes the run again."""

from pathlib import Path

import pytest

from diffvit_timm.cli import main
from diffvit_timm.hub.publishing import PushError


def failing(run, private, path_in_repo=None):
    def push(*_, **__):
        reason = "`repo=me/pets` cannot be pushed to: the Hub is away: wait some minutes"
        raise PushError(reason, run, "me/pets", private, path_in_repo)

    return push


@pytest.mark.parametrize(
    ("run", "private", "path", "command"),
    [
        (Path("runs/pets"), True, None, "diffvit push runs/pets me/pets --private"),
        (Path("my runs/it's"), False, None, "diffvit push 'my runs/it'\"'\"'s' me/pets"),
        (Path("runs/pets"), False, "all/pets", "diffvit push runs/pets me/pets --path-in-repo all/pets"),
    ],
)
@pytest.mark.parametrize("argv", [["push", "RUN", "me/pets"], ["train", "--config", "pets"]], ids=lambda argv: argv[0])
def test_a_failed_push_ends_with_the_command_that_pushes_the_run_again(
    argv, run, private, path, command, monkeypatch, capsys
):
    for place in ("diffvit_timm.cli.commands.push.push_run", "diffvit_timm.training.recipe.train"):
        monkeypatch.setattr(place, failing(run, private, path))
    with pytest.raises(SystemExit):
        main(argv)
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith(f"; the run in {run} is complete and can be pushed again: {command}\n")
