"""What README.md shows can be run as it stands."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def test_the_python_snippets_run_as_they_stand(hub_cache):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(snippets) >= 2
    names = {name: torch.randn(2, 3, 224, 224) for name in ("images", "others")}
    for snippet in snippets:
        exec(snippet, names)  # one after the other, as they are read


def test_every_file_of_the_tree_is_there_and_every_module_is_in_the_tree():
    tree = re.search(r"## Files\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    for path in (ROOT / "diffvit_timm").rglob("*.py"):
        assert path.name == "__init__.py" or path.name in tree, path
    for name in re.findall(r"\b\w+\.py\b", tree):
        assert list(ROOT.rglob(name)), name
