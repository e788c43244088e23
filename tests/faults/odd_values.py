"""Odd values for every option of every command, which are parsed only: each is a usable value or one InputError."""

import dataclasses
import importlib
import itertools
import math
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from diffvit_timm.cli.flags import option_fields, positional_names
from diffvit_timm.cli.parser import parse_options
from diffvit_timm.errors import InputError

NUMBERS = [
    "nan", "inf", "-inf", "1e400", "10" * 9, "-" + "10" * 9, "9" * 5000, "\N{SUPERSCRIPT TWO}",
    "\N{FULLWIDTH DIGIT THREE}", "\N{ARABIC-INDIC DIGIT THREE}", "\N{VULGAR FRACTION ONE HALF}", "1_000", "0x10", "-0",
]  # fmt: skip
TEXTS = [
    "", " ", "a\nb", "a\tb", "\x1b[31mred", "a\0b", "\udcff", "a\u2028b", "x" * 300, "x/" * 3000, "~no-such-user/x",
    "`$^_\\"
]  # fmt: skip
YAML = [
    "[1, 2]", "[[1]]", "{a: 1}", "[{a: 1}]", "2024-01-01", "on", "~", ".nan", ".inf", "1e400", "012", "12:30", "[]",
    "{}", "'a\\nb'", '"a\\nb"', '"\\0"', '""', "&a [*a]", "*a", "[", "\N{SUPERSCRIPT TWO}", "1_000_000_000_000",
    "!!binary YQ==", "!!python/object:os.system x",
]  # fmt: skip
VALUES = NUMBERS + TEXTS + YAML

# Arguments with which each command parses; the word IMAGE is replaced by an existing image.
REQUIRED = {
    "train": "--dataset x --model y", "convert": "x OUT", "predict": "IMAGE --model y", "explain": "IMAGE",
    "compare conversions": "", "compare coverage": "", "compare clip": "--convert svd", "export": "y OUT",
    "compare attacks": "y", "compare faithfulness": "--models y", "compare probes": "y", "compare robustness": "y",
    "benchmark models": "--model y", "benchmark attention": "", "benchmark training": "",
    "benchmark gpu": "--output x", "study ablation": "", "study compare": "FILE --output x", "study presets": "mnist",
    "study scaling": "", "study rates": "--dataset x --model y", "explore": "y", "segment": "y --dataset x",
    "push": "RUN REPO", "pull": "REPO OUT",
}  # fmt: skip


def options_of(command: str) -> Any:
    return importlib.import_module(f"diffvit_timm.cli.commands.{command.replace(' ', '_')}").Options


def odd_arguments(image: Path, folder: Path) -> Iterator[tuple[str, str, int, list[str]]]:
    """Yield a command, one of its options, the number of an odd value, and arguments with this value.

    The value stands on the command line or in a preset, which is written as its arguments are yielded.
    """
    preset = folder / "odd.yaml"
    for command in REQUIRED:
        required = [str(image) if word == "IMAGE" else word for word in REQUIRED[command].split()]
        positionals = positional_names(options_of(command))
        for name, number in itertools.product([*option_fields(options_of(command)), "config"], range(len(VALUES))):
            value = VALUES[number]
            if number >= len(NUMBERS + TEXTS):
                preset.write_text(f"{name}: {value}\n" if name not in positionals else f"{value}: {name}\n")
                arguments = [*required, "--config", str(preset)]
            elif name in positionals:
                place = positionals.index(name)
                arguments = [*required[:place], value, *required[place + 1 :]]
            else:
                arguments = [*required, f"--{name.replace('_', '-')}={value}"]
            yield command, name, number, arguments


def unusable(value: Any) -> bool:
    """Return whether a parsed value, or one within it, is not finite, is huge, or cannot be printed."""
    if dataclasses.is_dataclass(value):
        return any(unusable(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, (tuple, list)):
        return any(map(unusable, value))
    if isinstance(value, (int, float)):
        return not math.isfinite(value) or abs(value) > 2**32
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in str(value))


def try_values(image: Path, folder: Path, per_option: int = 0, seed: int = 0) -> tuple[Counter, list[str]]:
    """Parse odd values.

    Args:
        image: an existing image.
        folder: folder for presets.
        per_option: number of values per option, drawn at random; 0: all.
        seed: seed of that draw.

    Returns:
        The numbers of values that were "parsed" or "refused", and a line about each other exception, each message of
        several lines, and each value that should not have been parsed.
    """
    draws, outcomes, escaped = random.Random(seed), Counter(), []
    chosen = set(range(len(VALUES)))
    for command, name, number, arguments in odd_arguments(image, folder):
        if number == 0 and per_option:
            chosen = set(draws.sample(range(len(VALUES)), per_option))
        if number not in chosen:
            continue
        case = f"{command}: {name} in {ascii(arguments[-1])[:80]}"
        try:
            options = parse_options(options_of(command), arguments, prog=f"diffvit {command}")
        except InputError as error:
            outcomes["refused"] += 1
            if any(unicodedata.category(c) in ("Cc", "Cs") for c in " ".join(str(error).split())):
                escaped.append(f"{case}: {str(error)!r}")
        except (Exception, SystemExit) as error:
            escaped.append(f"{case}: {error!r}")
        else:
            outcomes["parsed"] += 1
            if unusable(options):
                escaped.append(f"{case}: {options}")
    return outcomes, escaped


def odd_values(root: Path, count: int, rng: random.Random) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield trials of one odd value for every option of every command, for tests/campaign.py."""
    for seed in rng.sample(range(10**6), count):

        def trial(folder=root / str(seed), seed=seed) -> None:
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "image.png")
            _, escaped = try_values(folder / "image.png", folder, per_option=1, seed=seed)
            assert not escaped, escaped

        yield f"an odd value for every option, seed {seed}", trial
