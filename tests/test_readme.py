"""What README.md and the pages of recipes/ show can be run as it stands."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from diffvit_timm.cli.main import COMMANDS
from diffvit_timm.cli.parser import parse_options
from diffvit_timm.models.pretrained import save_pretrained

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "recipes" / "results").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md", ROOT / "recipes" / "container" / "README.md", *RESULTS]

# What the placeholders of the pages stand for, where an option checks its value.
PLACEHOLDERS = {"S": "0", "N": "1", "SIZE": "224"}


def snippets(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def commands_of(page):
    """The words of every diffvit command in the shell blocks of a page, without comments and continuation lines."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in shlex.split(line, comments=True) and re.split(r"&&", line):
                words = shlex.split(part, comments=True)
                if words and words[0] == "diffvit":
                    yield words[1:]


def test_the_python_snippets_run_as_they_stand(hub_cache, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names = {}
    assert len(snippets("python")) == 3
    for snippet in snippets("python"):
        exec(snippet, names)  # one after the other, as they are read
        save_pretrained(names["model"].eval(), "RUN/best", label_names=[f"breed {i}" for i in range(37)])
    assert names["patches"].shape == names["relevance"].shape == (2, 14, 14)
    assert names["difference"].shape == (2, 3, 197, 197)
    assert len(names["classifier"].model.config.id2label) == 37


def test_version_2_of_the_first_snippet_computes_the_sources_outputs(hub_cache):
    names = {}
    exec(snippets("python")[0], names)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, outputs = (names[name].eval()(images) for name in ("plain", "exact"))
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_that_the_console_command_parses(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for image in ("cat.jpg", "dog.jpg", "IMAGE.jpg"):
        (tmp_path / image).touch()
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.yaml").write_text("dataset: pets\nmodel: diffvit_tiny_patch16\n")
    for words in commands_of(page):
        name = next(command for command in COMMANDS if words[: len(command.split())] == command.split())
        module = importlib.import_module(f"diffvit_timm.cli.commands.{name.replace(' ', '_')}")
        options = [PLACEHOLDERS.get(word, word) for word in words[len(name.split()) :]]
        parse_options(module.Options, options, prog=f"diffvit {name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_a_reader_finds_the_end_of_each_guide():
    lines = {page: len(page.read_text().splitlines()) for page in PAGES[:2]}
    assert lines[PAGES[0]] <= 130
    assert lines[PAGES[1]] <= 100


def test_every_result_page_is_in_the_guide():
    guide = PAGES[1].read_text()
    assert all(f"results/{page.name}" in guide for page in RESULTS)


def test_the_pictures_of_the_repository_are_small():
    pictures = [path for name in ("diffvit_timm", "recipes", "tests") for path in (ROOT / name).rglob("*.png")]
    assert sum(path.stat().st_size for path in pictures) < 2**20
