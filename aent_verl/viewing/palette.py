"""The colours, dashes and markers of every picture and page: distinct with any colour vision, and without colour.

A page holds every chart once for both themes: in its SVG a colour is a CSS variable. Matplotlib knows none, so it
draws with colours that stand for them, see `aent_verl.viewing.pages`.

Behind text, a colour is a level of a scale. Every scale starts at the colour of the paper and moves away from it in
equal steps of lightness (OKLab), so it is read with any colour vision; hue only helps. It ends while the theme's ink
still has a contrast of at least 4.5 on it (WCAG AA), so the text never changes colour.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

LEVELS = 32
# Diverging scales: the middle level is paper.
MIDDLE = 15
DIVERGING_LEVELS = 2 * MIDDLE + 1


@dataclass(frozen=True)
class Theme:
    """Colours of a theme, ``#rrggbb``.

    Attributes:
        paper: background of charts and text.
        ink: text, and the baseline's line.
        muted: text of second rank, and axes.
        grid: lines of the grid.
        series: of the methods after the baseline, used in turn.
        ground: background of a page, around the paper.
        line: frames and rules of a page.
        accent: links, and what is in focus.
        hot: the scale of what is 0 or more passes through these.
        cold: the diverging scale ends here below its middle,
        warm: and here above it.
    """

    paper: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]
    ground: str
    line: str
    accent: str
    hot: tuple[str, ...]
    cold: str
    warm: str

    def colour(self, place: int) -> str:
        """Return the colour of the method at this place; the baseline, at 0, is ink."""
        return self.ink if place == 0 else self.series[(place - 1) % len(self.series)]

    def sequential(self) -> list[str]:
        """Return LEVELS colours, from paper on."""
        return _scale([self.paper, *self.hot], LEVELS)

    def diverging(self) -> list[str]:
        """Return DIVERGING_LEVELS colours, paper in the middle."""
        return _scale([self.cold, self.paper, self.warm], DIVERGING_LEVELS)


# Okabe and Ito's palette; orange and sky darker than theirs, for a contrast of 3 on white.
LIGHT = Theme(
    paper="#fdfdfd",
    ink="#14171c",
    muted="#5f656e",
    grid="#dde0e5",
    series=("#0072b2", "#d55e00", "#009e73", "#aa4499", "#a97800", "#2f8fc4"),
    ground="#eef0f3",
    line="#c9cdd4",
    accent="#0057a8",
    hot=("#f0d982", "#fb9c3b", "#f15b41"),
    cold="#5aa3ec",
    warm="#ed8725",
)
DARK = Theme(
    paper="#171a1f",
    ink="#f1f3f5",
    muted="#9aa1ab",
    grid="#333942",
    series=("#5ab4ec", "#ff8a3d", "#2ec99b", "#dd88cc", "#f0b429", "#9fd3f5"),
    ground="#0f1114",
    line="#3c424c",
    accent="#8cc2ff",
    hot=("#3f2351", "#812258", "#b43d1f"),
    cold="#2063b0",
    warm="#975105",
)
# Names of CSS variables other than those of the methods.
_NAMES = ("paper", "ink", "muted", "grid", "ground", "line", "accent")
# Stand for the page's CSS variables, see `variables`.
_STANDING: dict[str, Any] = {name: f"#fe{number:04}" for number, name in enumerate(_NAMES)}
STANDING_IN = replace(LIGHT, series=tuple(f"#fe001{number}" for number in range(len(LIGHT.series))), **_STANDING)

DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (9, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
)
MARKERS = "osD^vPX"

# From OKLab to the cones' response, and from its cube to linear sRGB: Björn Ottosson's definition.
_TO_CONES = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def variables(theme: Theme) -> dict[str, str]:
    """Return the theme's colours by the name of their CSS variable."""
    # The baseline's first: where two variables have one colour, as its ink, the later name is the one in an SVG.
    methods = {f"m{place}": theme.colour(place) for place in range(len(theme.series) + 1)}
    return methods | {name: getattr(theme, name) for name in _NAMES}


def dash(place: int) -> Any:
    """Return the line style of the method at this place. Beyond the colours, dashes shift against them."""
    return DASHES[(place + (max(place, 1) - 1) // len(LIGHT.series)) % len(DASHES)]


def marker(place: int) -> str:
    """Return the marker of the method at this place."""
    return MARKERS[place % len(MARKERS)]


def to_oklab(colour: str) -> np.ndarray:
    """Convert ``#rrggbb`` to lightness, a and b, ``[3]``."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return np.linalg.solve(_TO_CONES, np.cbrt(np.linalg.solve(_TO_RGB, linear)))


def from_oklab(lab: np.ndarray) -> str:
    """Convert lightness, a and b, ``[3]``, to ``#rrggbb``, channels clipped to what sRGB has."""
    linear = np.clip(_TO_RGB @ (_TO_CONES @ lab) ** 3, 0, 1)
    channels = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels.tolist())


def _scale(stops: list[str], count: int) -> list[str]:
    """Return ``count`` colours along straight lines in OKLab through equally spaced stops."""
    labs = np.array([to_oklab(stop) for stop in stops])
    places = np.linspace(0, len(stops) - 1, count)
    return [from_oklab(lab) for lab in np.transpose([np.interp(places, range(len(stops)), c) for c in labs.T])]
