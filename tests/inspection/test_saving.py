"""Names are drawn as they are, whatever characters they have, and stay within the figure."""

import types

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from diffvit_timm.inspection import figures
from diffvit_timm.inspection.overlay import Box
from diffvit_timm.inspection.saving import _family, legend_label, save_figure
from diffvit_timm.studies.inference_speed import plot_throughput
from diffvit_timm.zero_shot.disagreement import plot_agreement, plot_wins

NAMES = ["$a_b$ and $c^d$", r"\alpha_$x$", "_run", "costs 5$", r"a\$b$", "x" * 200, "Größe"]


def saved(figure, tmp_path):
    """Save a figure; returns its texts, of which none is a formula."""
    save_figure(figure, tmp_path / "figure.png")
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in texts if "mathdefault" not in text.get_text())
    return [text.get_text() for text in texts]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_is_in_every_figure_of_a_model(name, tmp_path):
    picture = figures.Picture(Image.new("RGB", (60, 40), "tan"), Box(10, 5, 50, 35), name)
    heat = np.random.default_rng(0).random((1, 3, 4))
    for figure in (
        figures.plot_overlays([picture], {"rollout": heat}, f"title\n{name}"),
        figures.plot_heads([heat], f"title\n{name}", signed=False),
        figures.plot_lambdas({name: heat[0, :, 0], "other": heat[0, :, 1]}, "title"),
        plot_agreement(np.eye(2), [name, "other"], "title"),
    ):
        texts = saved(figure, tmp_path)
        figure.draw_without_rendering()  # the file has another resolution
        assert any(name.replace(" ", "") in text.replace("\n", "").replace(" ", "") for text in texts)
        for text in (figure._suptitle, *(legend.get_texts()[0] for legend in figure.legends)):
            if text is not None:
                box = text.get_window_extent()
                assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_a_class_name_beside_a_bar_is_cut_if_it_does_not_fit(tmp_path):
    figure = plot_wins([Image.new("RGB", (8, 8))], [0], {"$m$": np.array([[0.9, 0.1]])}, ["y" * 50, "$b$"], "title")
    texts = saved(figure, tmp_path)
    assert {"y" * 25 + "... 90%", "$b$ 10%", "probability by $m$"} <= set(texts)


def test_names_beside_bars_are_drawn_as_they_are(saved_figures, tmp_path):
    rows = [dict(model=name, precision="fp32", batch_size=1, images_per_second=9.0) for name in ("$a$", "_b")]
    plot_throughput(rows, tmp_path / "figure.png", "on $x$")
    labels = saved_figures[0].axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["$a$", "_b"]
    assert not any(label.get_parse_math() for label in labels)


def test_numbers_of_logarithmic_axes_stay_formulas(tmp_path):
    figure = Figure()
    axis = figure.subplots()
    axis.loglog([1e2, 1e5], [1e-3, 1e3])
    figure.draw_without_rendering()
    save_figure(figure, tmp_path / "figure.png")
    numbers = [label for label in axis.get_xticklabels() if label.get_text()]
    assert numbers
    assert all(label.get_parse_math() for label in numbers)


def test_numbers_at_fixed_places_stay_numbers(tmp_path):
    figure = Figure()
    axis = figure.subplots()
    axis.set_xticks([0, 2])
    save_figure(figure, tmp_path / "figure.png")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "2"]


def test_characters_that_no_font_has_are_escapes_and_others_come_from_another_font(tmp_path, monkeypatch):
    families = {"\N{CJK UNIFIED IDEOGRAPH-732B}": None, "\N{CJK UNIFIED IDEOGRAPH-72AC}": "STIXGeneral"}
    monkeypatch.setattr("diffvit_timm.inspection.saving._family", lambda c: families.get(c, ""))
    figure = Figure()
    figure.suptitle("a\N{CJK UNIFIED IDEOGRAPH-732B}\x1b\nb")
    save_figure(figure, tmp_path / "figure.png")
    assert figure._suptitle.get_text() == r"a\u732b\x1b" + "\nb"
    text = Figure().text(0, 0, "\N{CJK UNIFIED IDEOGRAPH-72AC}")
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **k: path.touch())
    save_figure(text.figure, tmp_path / "figure.png")
    assert text.get_fontfamily() == ["sans-serif", "STIXGeneral"]


def test_the_default_font_has_the_letters_of_many_scripts():
    for letter in "aß$\N{GREEK SMALL LETTER ALPHA}\N{CYRILLIC SMALL LETTER YA}\N{MINUS SIGN}":
        assert _family(letter) == ""


@pytest.mark.parametrize(
    ("name", "family"), [("Last Resort High-Efficiency", None), ("cmex10", None), ("A text font", "A text font")]
)
def test_a_character_is_taken_from_a_text_font_and_not_from_the_last_resort(name, family, monkeypatch):
    character = "\N{CJK UNIFIED IDEOGRAPH-72AC}"

    class Font:
        def __init__(self, path):
            self.path = path

        def get_char_index(self, code):
            return int(self.path == "font-with-it")

    manager = types.SimpleNamespace(ttflist=[types.SimpleNamespace(name=name, fname="font-with-it")])
    monkeypatch.setattr(font_manager, "fontManager", manager)
    monkeypatch.setattr(font_manager, "get_font", Font)
    assert _family.__wrapped__(character) == family


def test_a_line_whose_name_starts_with_an_underscore_is_in_the_legend(tmp_path):
    figure = figures.plot_lambdas({"_run": np.zeros(3), "other": np.ones(3)}, "title")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [legend_label("_run"), "other"]
    assert legend_label("_run").strip() == "_run"


def test_a_figure_grows_by_the_lines_into_which_a_long_title_is_broken(tmp_path):
    figure = Figure(figsize=(5, 3))
    figure.suptitle("word " * 40, fontsize=12)
    save_figure(figure, tmp_path / "figure.png")
    lines = figure._suptitle.get_text().split("\n")
    assert max(map(len, lines)) <= 50
    assert figure.get_figheight() == pytest.approx(3 + (len(lines) - 1) * 1.2 * 12 / 72)
