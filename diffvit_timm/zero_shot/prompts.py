"""Prompt templates: sentences that put the name of a class into words for CLIP's text tower."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .imagenet_names import wordnet_id

__all__ = ["TEMPLATES", "auto_templates", "read_templates"]

# CLIP's own prompts (https://github.com/openai/CLIP, data/prompts.md). A key is looked for in the dataset's name.
_LOOKS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
TEMPLATES = {
    "pet": ("a photo of a {}, a type of pet.",),
    "cifar": tuple(
        f"a {look}photo of {article} {size}{{}}."
        for article in ("a", "the")
        for look, size in (*((look, "") for look in _LOOKS), ("", "small "), ("", "big "))
    ),
    "fashion": ("a photo of a {}, a type of clothing.",),
    "mnist": ('a photo of the number: "{}".',),
    "imagenet": (
        "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
        "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
    ),
    "plain": ("a photo of a {}.",),
}  # fmt: skip


def auto_templates(dataset: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """Choose the templates for a dataset: sentences with {} in place of the class name.

    Args:
        dataset: name or folder of the dataset; a key of TEMPLATES is looked for in its last part.
        class_names: class names of the dataset. If all are WordNet ids, the dataset is one of ImageNet.
    """
    name = Path(dataset).name.lower()
    chosen = next((key for key in TEMPLATES if key in name), "plain")
    if chosen == "plain" and class_names and all(map(wordnet_id, class_names)):
        chosen = "imagenet"
    return TEMPLATES[chosen]


def read_templates(given: str) -> tuple[str, ...]:
    """Return templates: sentences with {} in place of the class name.

    Args:
        given: a key of TEMPLATES, or a text file with one template per line.

    Raises:
        InputError: neither a key nor a readable file, a file without templates, or a line that does not have exactly
            one {}.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    try:
        lines = [line.strip() for line in Path(given).expanduser().read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(["auto", *TEMPLATES])
        raise InputError(f"`templates={given}` is neither one of {known} nor a text file: {error}") from error
    templates = tuple(line for line in lines if line)
    for number, line in enumerate(lines, start=1):
        if line and line.count("{}") != 1:
            raise InputError(
                f"`templates={given}` has {line!r} in line {number}: write exactly one {{}} in place of the class name"
            )
    if not templates:
        raise InputError(
            f"`templates={given}` has no templates: write one sentence per line, with {{}} in place of the class name"
        )
    return templates
