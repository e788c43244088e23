"""The Dockerfile, the workflows, uv.lock and pyproject.toml agree, and the page of the image shows valid commands."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from diffvit_timm.cli.main import COMMANDS
from diffvit_timm.cli.parser import parse_options

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "recipes" / "container"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILE = (CONTAINER / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = tomllib.loads((ROOT / "uv.lock").read_text())["package"]


def jobs(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]


def locked(name):
    (package,) = (package for package in LOCKED if package["name"] == name)
    return package


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_tests_run_on_each_python_version_that_the_package_names():
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert jobs("tests")["tests"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_tests_run_by_the_command_of_readme_with_the_newest_versions():
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- test command -->\n```bash\n(.*?)\n```", readme, re.DOTALL)
    newest, lowest = commands(jobs("tests")["tests"])
    assert newest == command.group(1)
    assert lowest.endswith(newest.partition('-e ".[dev]"')[2])


def test_the_linters_are_those_of_the_local_check():
    local = (ROOT / ".ci" / "run").read_text().splitlines()
    linters = [line for line in local if line.startswith(("ruff", "mypy"))]
    assert [f"uv run {line}" for line in linters] == commands(jobs("tests")["lint"])[1:]


@pytest.mark.parametrize("path", [CONTAINER / "Dockerfile", CONTAINER / "README.md", *WORKFLOWS], ids=lambda p: p.name)
def test_every_extra_that_is_installed_exists(path):
    text = path.read_text()
    extras = re.findall(r"--extra (\w+)|\.\[(\w+)\]", text)
    assert extras or path.name == "container.yml"
    assert {one or other for one, other in extras} <= set(PROJECT["optional-dependencies"])


def test_the_dockerfile_copies_files_that_exist_and_are_sent_to_the_builder():
    sent = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    ]
    assert copied[-1] == "."
    assert set(copied[:-1]) <= set(sent)
    assert all((ROOT / name).exists() for name in sent)
    assert {PROJECT["readme"], *PROJECT["license-files"], "diffvit_timm"} <= set(
        sent
    )  # what the build of the wheel reads


def test_the_image_has_the_cuda_version_of_the_locked_torch():
    cuda = re.search(r"^FROM nvidia/cuda:(\d+\.\d+)", DOCKERFILE, re.MULTILINE).group(1)
    assert locked("cuda-toolkit")["version"].startswith(cuda + ".")
    assert f"CUDA {cuda.partition('.')[0]}" in (CONTAINER / "README.md").read_text()


def test_the_lock_is_of_the_dependencies_in_pyproject():
    entries = locked("diffvit-timm")["metadata"]["requires-dist"]
    found = {(entry["name"], SpecifierSet(entry.get("specifier", "")), entry.get("marker", "")) for entry in entries}
    for extra, lines in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        for requirement in map(Requirement, lines):
            marker = f"extra == '{extra}'" if extra else ""
            assert (canonicalize_name(requirement.name), requirement.specifier, marker) in found, "run `uv lock`"


def test_the_lock_names_only_the_public_index():
    sources = [package["source"] for package in LOCKED]
    assert sources.count({"editable": "."}) == 1
    assert all(source == {"registry": "https://pypi.org/simple"} for source in sources if source != {"editable": "."})
    wheels = [wheel["url"] for package in LOCKED for wheel in package.get("wheels", [])]
    assert len(wheels) > 1000
    assert all(wheel.startswith("https://files.pythonhosted.org/packages/") for wheel in wheels)


def test_the_commands_for_the_image_are_ones_that_diffvit_parses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (CONTAINER / "README.md").read_text() + DOCKERFILE
    after_the_image = re.findall(r"docker run (?:[^`\n]*?) (?:IMAGE|diffvit_timm) ([^`\n]+)", text)
    assert len(after_the_image) >= 2
    for line in after_the_image:
        words = shlex.split(line)
        name = next(command for command in COMMANDS if words[: len(command.split())] == command.split())
        module = importlib.import_module(f"diffvit_timm.cli.commands.{name.replace(' ', '_')}")
        parse_options(module.Options, words[len(name.split()) :])


def test_the_page_is_short():
    assert len((CONTAINER / "README.md").read_text().splitlines()) <= 80
