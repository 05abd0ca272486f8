import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from aent_verl.viewing import pages
from aent_verl.viewing.charts import Chart, Interval, Level, Line, add_heading, draw, draw_intervals
from aent_verl.viewing.pages import inline_svg
from aent_verl.viewing.palette import LIGHT, STANDING_IN, variables

X = np.arange(5.0)
LINES = [Line(place, X, X + place, X + place - 1, X + place + 1) for place in range(8)]
CHART = Chart("reward", "Reward", "step", LINES, levels=[Level(1, 2, 3), Level(2, 4, 4)])


@pytest.fixture(scope="module")
def text():
    return inline_svg(draw(CHART, STANDING_IN), "reward", 'a "b" <c>')


def test_all_colours_are_variables_of_the_page(text):
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= set(variables(LIGHT))
    assert {"ink", "muted", "grid", "m1", "m6"} <= used
    # Matplotlib leaves out a fill that is black.
    assert re.findall(r"#[0-9a-fA-F]{6}\b", text) == []


def test_it_is_an_svg_without_anything_of_other_places(text):
    root = ElementTree.fromstring(text)
    assert root.tag == "svg"
    assert root.attrib["aria-label"] == 'a "b" <c>'
    assert "width" not in root.attrib
    for word in ("http", "xlink", "xmlns", "metadata", "DejaVu", "<style"):
        assert word not in text


def test_ids_are_those_that_are_referred_to_and_carry_the_charts_name(text):
    ids = re.findall(r' id="([^"]+)"', text)
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert len(ids) == len(set(ids))
    assert {one or other for one, other in referred} == set(ids)
    assert all(each.startswith("reward-") for each in ids)


def test_everything_of_a_method_has_its_class(text):
    root = ElementTree.fromstring(text)
    classes = [element.attrib["class"] for element in root.iter() if "class" in element.attrib]
    # Band, line and markers; and a level.
    assert [classes.count(f"s{place}") for place in (0, 1, 2)] == [3, 3 + 3, 3 + 1]


def test_the_same_figure_gives_the_same_text(text):
    assert inline_svg(draw(CHART, STANDING_IN), "reward", 'a "b" <c>') == text


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_drawn_as_they_are(tmp_path):
    names = ["grpo", "<b>&", "$x_1$", "a$b", "bad\x07\u202e"]
    shown = ["grpo", "<b>&", "$x_1$", "a$b", "bad␇⟨U+202E⟩"]
    intervals = [Interval(place, 0.1, 0.0, 0.2) for place in range(len(names))]
    root = ElementTree.fromstring(inline_svg(draw_intervals(intervals, names, "difference", STANDING_IN), "d", ""))
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    assert set(shown) < set(texts)
    for title, literal in zip(names, shown, strict=True):
        chart = Chart("c", title, "x", LINES[: len(names)])
        picture = draw(chart, LIGHT)
        add_heading(picture, chart, names, LIGHT)
        assert picture.axes[0].get_title(loc="left") == literal.replace("$", r"\$")
    # As text, not as a formula.
    picture.savefig(tmp_path / "c.png", dpi=20)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.1234, ".123"),
        (-0.1234, "-.123"),
        (-0.0001, ".000"),
        (1.0, "1.000"),
        (0.9999, "1.000"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (None, "—"),
        (math.nan, "—"),
    ],
)
def test_decimals(value, said):
    assert pages.decimal(value) == said


def test_signs():
    assert pages.decimal(0.1, signed=True) == "+.100"
    assert pages.decimal(-0.00001, signed=True) == ".000"
    assert pages.decimal(20, signed=True) == "+20.0"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (12, "12"),
        (1234, "1.23 k"),
        (1.5e6, "1.5 M"),
        (2e9, "2 G"),
        (3e12, "3 T"),
        (999.7, "1 k"),
        (999_600, "1 M"),
        (None, "—"),
    ],
)
def test_amounts(value, said):
    assert pages.amount(value) == said


def test_p_values():
    assert [pages.p_value(p) for p in (0.0001, 0.0234, None)] == ["< .001", ".023", "—"]


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(0.0, True, "0"), (-0.0, False, "0"), (2.0, True, "+2"), (-1.2345, True, "-1.23"), (None, False, "—")],
)
def test_number(value, signed, text):
    assert pages.number(value, signed) == text
