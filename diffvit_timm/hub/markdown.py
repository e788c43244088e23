"""Text in Markdown: names of classes, datasets and models are shown as they are and cannot format the page."""

import re

from ..console import printable

__all__ = ["code_block", "code_span", "escaped"]


def escaped(text: object) -> str:
    """Escape a text for Markdown.

    Args:
        text: any value, which is converted to a string.

    Returns:
        One line that Markdown shows literally. Control characters become escapes.
    """
    return re.sub(r"([\\`*_\[\]<>|~&$#:@])", r"\\\1", printable(str(text)))


def code_span(text: object) -> str:
    """Format a text as code within a line.

    Args:
        text: any value, which is converted to a string.

    Returns:
        The text between backquotes. Control characters become escapes, and backquotes become quotes.
    """
    return f"`{printable(str(text)).replace('`', chr(39))}`"


def code_block(text: str, language: str) -> str:
    """Format lines of code as a block.

    Args:
        text: lines of code.
        language: name of the language, for the highlighting.

    Returns:
        The fenced block. Its fence is longer than every sequence of backquotes in the code.
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
