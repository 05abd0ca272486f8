import re
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from aent_verl.viewing.charts import Chart, Interval, Level, Line, add_heading, draw, draw_intervals
from aent_verl.viewing.palette import DARK, LIGHT, STANDING_IN, variables
from aent_verl.viewing.svg import inline_svg

X = np.arange(5.0)
LINES = [Line(place, X, X + place, X + place - 1, X + place + 1) for place in range(8)]
CHART = Chart("reward", "Reward", "step", LINES, levels=[Level(1, 2, 3), Level(2, 4, 4)])


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_all_colours_are_variables_of_the_page():
    text = inline_svg(draw(CHART, STANDING_IN), "reward", "Reward")
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= set(variables(LIGHT))
    assert {"ink", "muted", "grid", "m1", "m6"} <= used
    # Matplotlib leaves out a fill that is black.
    assert re.findall(r"#[0-9a-fA-F]{6}\b", text) == []


def test_it_is_an_svg_without_anything_of_other_places():
    text = inline_svg(draw(CHART, STANDING_IN), "reward", 'a "b" <c>')
    root = ElementTree.fromstring(text)
    assert root.tag == "svg"
    assert root.attrib["aria-label"] == 'a "b" <c>'
    assert "width" not in root.attrib
    for word in ("http", "xlink", "xmlns", "metadata", "DejaVu", "<style"):
        assert word not in text


def test_ids_are_those_that_are_referred_to_and_carry_the_charts_name():
    text = inline_svg(draw(CHART, STANDING_IN), "reward", "")
    ids = re.findall(r' id="([^"]+)"', text)
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert len(ids) == len(set(ids))
    assert {one or other for one, other in referred} == set(ids)
    assert all(each.startswith("reward-") for each in ids)


def test_everything_of_a_method_has_its_class():
    root = ElementTree.fromstring(inline_svg(draw(CHART, STANDING_IN), "reward", ""))
    classes = [element.attrib["class"] for element in root.iter() if "class" in element.attrib]
    # Band, line and markers; a level besides.
    assert [classes.count(f"s{place}") for place in (0, 1, 2)] == [3, 3 + 3, 3 + 1]


def test_the_same_figure_gives_the_same_text():
    assert inline_svg(draw(CHART, STANDING_IN), "a", "") == inline_svg(draw(CHART, STANDING_IN), "a", "")


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["<b>&", "$x_1$", "a$b", "bad\x07\u202e"])
def test_names_are_drawn_as_they_are(name, tmp_path):
    figure = draw_intervals([Interval(1, 0.1, 0.0, 0.2)], ["grpo", name], "difference", STANDING_IN)
    root = ElementTree.fromstring(inline_svg(figure, "d", ""))
    texts = ["".join(element.itertext()) for element in root.iter("text")]
    shown = name.replace("\x07", "␇").replace("\u202e", "⟨U+202E⟩")
    assert shown in texts
    picture = draw(Chart("c", name, "x", LINES[:2]), LIGHT)
    add_heading(picture, Chart("c", name, "x", LINES[:2]), ["grpo", name], LIGHT)
    picture.savefig(tmp_path / "c.png")


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_lines_and_text_stand_out_in_both_themes(theme):
    for place in range(7):
        assert contrast(theme.colour(place), theme.paper) >= 3
    for colour in (theme.ink, theme.muted):
        assert contrast(colour, theme.paper) >= 4.5
