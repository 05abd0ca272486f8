"""Colour scales for the background of text, in a light and a dark theme.

Every scale starts at the colour of the paper and moves away from it in equal steps of lightness (OKLab), so it is read
with any colour vision; hue only helps. It ends while the theme's ink still has a contrast of at least 4.5 on it (WCAG
AA), so the text never changes colour.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

LEVELS = 32
# Diverging scales: the middle level is paper.
MIDDLE = 15
DIVERGING_LEVELS = 2 * MIDDLE + 1

# Lightness 0 to 1, chroma, hue in degrees (OKLCH).
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Theme:
    """Colours of a theme: hexadecimal sRGB, ``#rrggbb``.

    Attributes:
        paper: background of the responses.
        ink: text.
        muted: text of second rank and of tokens outside the loss.
        sequential: LEVELS colours, from paper on.
        diverging: DIVERGING_LEVELS colours, paper in the middle.
    """

    paper: str
    ink: str
    muted: str
    sequential: list[str]
    diverging: list[str]


def themes() -> dict[str, Theme]:
    """The page's two themes."""
    return {
        "light": _theme(
            paper=(0.995, 0, 0),
            ink=(0.20, 0.01, 260),
            muted=(0.53, 0.01, 260),
            hot=[(0.885, 0.11, 95), (0.775, 0.155, 62), (0.665, 0.19, 32)],
            negative=(0.70, 0.13, 250),
            positive=(0.72, 0.16, 58),
        ),
        "dark": _theme(
            paper=(0.21, 0.01, 260),
            ink=(0.965, 0.005, 260),
            muted=(0.68, 0.01, 260),
            hot=[(0.315, 0.085, 310), (0.42, 0.14, 350), (0.525, 0.16, 35)],
            negative=(0.50, 0.14, 255),
            positive=(0.51, 0.12, 58),
        ),
    }


def hexadecimal(colour: Colour) -> str:
    """OKLCH -> ``#rrggbb``, channels clipped to what sRGB has."""
    return _lab_to_hex(*_lch_to_lab(colour))


def _theme(
    *, paper: Colour, ink: Colour, muted: Colour, hot: list[Colour], negative: Colour, positive: Colour
) -> Theme:
    downwards = _scale([paper, negative], MIDDLE + 1)[:0:-1]
    return Theme(
        paper=hexadecimal(paper),
        ink=hexadecimal(ink),
        muted=hexadecimal(muted),
        sequential=_scale([paper, *hot], LEVELS),
        diverging=downwards + _scale([paper, positive], MIDDLE + 1),
    )


def _scale(stops: list[Colour], count: int) -> list[str]:
    """``count`` colours along straight lines in OKLab through equally spaced stops."""
    segments = list(pairwise(_lch_to_lab(stop) for stop in stops))
    colours = []
    for i in range(count):
        position = i / (count - 1) * len(segments)
        start, end = segments[min(int(position), len(segments) - 1)]
        share = position - min(int(position), len(segments) - 1)
        lightness, a, b = (x + share * (y - x) for x, y in zip(start, end, strict=True))
        colours.append(_lab_to_hex(lightness, a, b))
    return colours


def _lch_to_lab(colour: Colour) -> tuple[float, float, float]:
    lightness, chroma, hue = colour
    return lightness, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))


def _lab_to_hex(lightness: float, a: float, b: float) -> str:
    # Matrices of Björn Ottosson's definition of OKLab.
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(max(channel, 0.0), 1.0))):02x}" for channel in linear)


def _gamma(channel: float) -> float:
    return 12.92 * channel if channel <= 0.0031308 else 1.055 * channel ** (1 / 2.4) - 0.055
