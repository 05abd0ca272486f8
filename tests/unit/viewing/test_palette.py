import colorsys
from itertools import pairwise

import numpy as np
import pytest

from aent_verl.viewing import palette
from aent_verl.viewing.palette import DARK, DIVERGING_LEVELS, LEVELS, LIGHT, MIDDLE, from_oklab, to_oklab


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("colour", "lab"),
    [
        ("#ffffff", (1, 0, 0)),
        ("#000000", (0, 0, 0)),
        ("#ff0000", (0.62796, 0.22486, 0.12585)),
        ("#0000ff", (0.45201, -0.03246, -0.31153)),
    ],
)
def test_oklab_agrees_with_known_colours(colour, lab):
    assert to_oklab(colour) == pytest.approx(lab, abs=1e-4)
    assert from_oklab(np.array(lab)) == colour


def test_channels_outside_srgb_are_clipped():
    assert from_oklab(np.array([0.9, -0.31, 0.26])) == "#00ff00"


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_can_be_read_on_every_level(theme):
    assert len(theme.sequential()) == LEVELS
    assert len(theme.diverging()) == DIVERGING_LEVELS
    for colour in [*theme.sequential(), *theme.diverging()]:
        assert contrast(theme.ink, colour) >= 4.5
    assert contrast(theme.muted, theme.paper) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_levels_move_away_from_paper_in_steps_that_can_be_seen(theme):
    diverging = theme.diverging()
    down, up = diverging[MIDDLE::-1], diverging[MIDDLE:]
    for scale in (theme.sequential(), down, up):
        assert scale[0] == theme.paper
        away = [contrast(theme.paper, colour) for colour in scale]
        assert all(b > a for a, b in pairwise(away))
        assert away[-1] > 2
    hues = [colorsys.rgb_to_hsv(*(int(scale[-1][i : i + 2], 16) / 255 for i in (1, 3, 5)))[0] for scale in (down, up)]
    assert hues[0] == pytest.approx(0.6, abs=0.05)
    assert hues[1] == pytest.approx(0.08, abs=0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_lines_and_text_stand_out_in_both_themes(theme):
    for place in range(7):
        assert contrast(theme.colour(place), theme.paper) >= 3
    for colour in (theme.ink, theme.muted):
        assert contrast(colour, theme.paper) >= 4.5


def test_many_methods_have_keys_of_their_own():
    keys = {(str(palette.LIGHT.colour(p)), str(palette.dash(p)), palette.marker(p)) for p in range(18)}
    assert len(keys) == 18
    without_colour = {(str(palette.dash(p)), palette.marker(p)) for p in range(18)}
    assert len(without_colour) == 18
    without_markers = {(palette.LIGHT.colour(p), str(palette.dash(p))) for p in range(18)}
    assert len(without_markers) == 18
    assert len({palette.LIGHT.colour(p) for p in range(7)}) == 7
