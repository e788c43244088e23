"""Prompt templates: sentences that put the name of a class into words for CLIP's text tower."""

from pathlib import Path

from ..errors import InputError

__all__ = ["TEMPLATES", "read_templates", "readable"]

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


def read_templates(given: str, dataset: str) -> tuple[str, ...]:
    """Return the templates for a dataset: sentences with {} in place of the class name.

    Args:
        given: 'auto' to choose by the dataset's name, a key of TEMPLATES, or a text file with one template per line.
        dataset: name or folder of the dataset.

    Raises:
        InputError: neither a key nor a readable file, a file without templates, or a line that does not have exactly
            one {}.
    """
    if given == "auto":
        name = Path(dataset).name.lower()
        return next((templates for key, templates in TEMPLATES.items() if key in name), TEMPLATES["plain"])
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


def readable(name: str) -> str:
    """Return a class name as it is written in a sentence, with spaces instead of underscores."""
    return " ".join(name.replace("_", " ").split())
