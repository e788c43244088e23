"""Errors name options that the commands which raise them have."""

import ast
import re
from pathlib import Path

import pytest
from odd_values import REQUIRED, options_of

import diffvit_timm
from diffvit_timm.cli.flags import option_fields

PACKAGE = Path(diffvit_timm.__file__).parent
OPTIONS = {command: set(option_fields(options_of(command))) for command in REQUIRED}


# Their files, or --set, have the options of `train`, and errors name them as these do: without dashes.
WITH_A_FILE = ("study compare", "study presets")
WITH_MASKS = ("segment",)  # it trains on masks, and has neither labels nor the options of a classifier's training


def having(option):
    others = (*WITH_A_FILE, *WITH_MASKS)
    return [command for command in REQUIRED if option in OPTIONS[command] and command not in others]


# Modules, and the commands that can raise their errors. Others take the name of the parameter from their caller.
RAISED_BY = {
    "data/datasets.py": having("dataset"), "data/splits.py": having("dataset"), "data/steps.py": having("augment"),
    "data/config.py": having("augment"), "errors.py": having("device"), "hub/export.py": ["export"],
    "data/masks.py": ["segment"],
    "studies/ablation.py": ["study ablation"], "studies/runs.py": ["study ablation", "study scaling"],
    "studies/rates.py": ["study rates"], "studies/scaling.py": ["study scaling"],
    "studies/inference_speed.py": ["benchmark models"], "studies/trainer_speed.py": ["benchmark training"],
    "training/segmentation.py": ["segment"], "models/segmentation.py": ["segment"], "training": having("epochs"),
    "zero_shot": ["compare clip"],
} | {f"cli/commands/{command.replace(' ', '_')}.py": [command] for command in REQUIRED}  # fmt: skip


def named_parameters(path):
    """Yield every `name` and `name=...` in the strings of a file, without its docstrings."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        source = ast.get_source_segment(text, node) or "" if isinstance(node, (ast.JoinedStr, ast.Constant)) else ""
        if not source.startswith(('"""', 'r"""')):
            yield from (match[1] for match in re.finditer(r"`([a-z]\w*)(=[^`]*)?`", source))


@pytest.mark.parametrize("place", RAISED_BY)
def test_an_error_names_only_options_of_the_commands_that_raise_it(place):
    paths = [PACKAGE / place] if place.endswith(".py") else sorted((PACKAGE / place).rglob("*.py"))
    paths = [path for path in paths if len(paths) == 1 or not path.name.startswith("segmentation")]
    unknown = {
        f"{path.name}: {name}, not an option of {command}"
        for path in paths
        for name in named_parameters(path)
        for command in RAISED_BY[place]
        if name not in OPTIONS[command]
    }
    assert not unknown


def test_the_option_of_the_image_column_is_that_of_every_command_with_images_of_a_dataset():
    assert set(having("image_column")) == {*having("dataset"), "convert"}
