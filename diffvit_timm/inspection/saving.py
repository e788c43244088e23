"""Save a figure whose texts are drawn as they are: names of classes, files and models contain $, \\ and any script."""

import functools
import textwrap
from pathlib import Path

from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from ..console import printable

__all__ = ["legend_label", "save_figure"]

DPI = 120
CHARACTER_WIDTH, LINE_HEIGHT = 0.6, 1.2  # relative to the size of a font
PANEL_PITCH = 1.25  # distance between the left edges of neighbouring panels, in widths of a panel
NARROWEST = 30  # characters; shorter lines are not broken, however narrow their panel is


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, atomically.

    No text is read as a formula. Characters that no installed font has are written as escapes, and titles that are too
    long for their place are broken, also within a word; the figure grows by the new lines.

    Args:
        figure: figure to save; its texts and its height are changed in place.
        path: file to write.

    Raises:
        OSError: the file cannot be written.
    """
    _hide_empty_axes(figure)
    _set_drawable_texts(figure)
    _wrap_titles(figure)
    new = path.with_name(path.name + ".new")  # so that no half-written file has the name
    figure.savefig(new, dpi=DPI, format="png")
    new.replace(path)


def _visible_axes(figure: Figure) -> list[Axis]:
    """Return the visible x and y axes of all panels."""
    return [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_visible()]


def _hide_empty_axes(figure: Figure) -> None:
    """Hide the axes that have neither ticks nor a label: the layout would measure them for nothing."""
    for axis in _visible_axes(figure):
        has_ticks = any(len(ticks) for ticks in (axis.get_majorticklocs(), axis.get_minorticklocs()))
        if not has_ticks and not axis.get_label_text():
            axis.set_visible(False)


def _set_drawable_texts(figure: Figure) -> None:
    """Set every text to be drawn literally, in fonts that have its characters."""
    for axis in _visible_axes(figure):
        names = [label.get_text() for label in axis.get_ticklabels()]
        if isinstance(axis.get_major_locator(), FixedLocator) and any(names):  # matplotlib would write them again
            axis.set_ticks(axis.get_ticklocs(), list(map(_drawable, names)))
    for text in figure.findobj(Text):
        if text.get_text() and r"\mathdefault" not in text.get_text():  # numbers of a logarithmic axis are formulas
            text.set_parse_math(False)
            text.set_text(_drawable(text.get_text()))
            text.set_fontfamily(["sans-serif", *_other_families(text.get_text())])


def _wrap_titles(figure: Figure) -> None:
    """Break the long lines of titles and legends; the figure grows by the height of the new lines."""
    width = figure.get_figwidth()
    title = figure._suptitle  # type: ignore[attr-defined]
    added_height = _break_lines(title, width) if title else 0.0
    panels = [(axes.title, axes.get_position().width * width) for axes in figure.axes]
    added_height += max((_break_lines(text, PANEL_PITCH * panel) for text, panel in panels), default=0.0)
    added_height += sum(_break_lines(text, 0.9 * width) for legend in figure.legends for text in legend.get_texts())
    figure.set_figheight(figure.get_figheight() + added_height)


def legend_label(name: str) -> str:
    """Return the label of a line for the legend, from which matplotlib leaves out names that start with _."""
    return f" {name}" if name.startswith("_") else name


def _break_lines(text: Text, width: float) -> float:
    """Break the lines of a text that are longer than `width` inches; returns the height of the new lines in inches."""
    size = float(text.get_fontsize())
    length = max(NARROWEST, int(72 * width / (CHARACTER_WIDTH * size)))
    lines = text.get_text().split("\n")
    broken = "\n".join(textwrap.fill(line, length) if len(line) > length else line for line in lines)
    text.set_text(broken)
    return (broken.count("\n") + 1 - len(lines)) * LINE_HEIGHT * size / 72


def _drawable(text: str) -> str:
    """Replace characters that no font has by escapes; line breaks stay."""
    shown = "".join(c if c == "\n" or _family(c) is not None else ascii(c)[1:-1] for c in text)
    return "\n".join(map(printable, shown.split("\n")))


def _other_families(text: str) -> list[str]:
    """Return the fonts that a text needs beside the default one."""
    return list(dict.fromkeys(family for character in text if (family := _family(character))))


@functools.cache
def _family(character: str) -> str | None:
    """Return the installed font that has a character: '' for the default one, and None if there is none."""
    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    if default.get_char_index(ord(character)) or not character.isprintable():
        return ""
    for entry in font_manager.fontManager.ttflist:
        # The last resort has every character, as a box. The fonts of TeX have others in the places of characters.
        is_text_font = not entry.name.startswith(("Last Resort", "cm", "STIXSize", "STIXNonUnicode"))
        if is_text_font and font_manager.get_font(entry.fname).get_char_index(ord(character)):
            return entry.name
    return None
