"""Colours, dashes and markers of methods: told apart with any colour vision, and without colour.

The page holds every chart once for both themes: in its SVG a colour is a CSS variable. Matplotlib knows none, so it
draws with colours that stand for them, see `aent_verl.viewing.svg`.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """Colours of a theme, ``#rrggbb``.

    Attributes:
        paper: background of a chart.
        ink: text, and the baseline's line.
        muted: text of second rank, and axes.
        grid: lines of the grid.
        series: of the methods after the baseline, used in turn.
    """

    paper: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]

    def colour(self, place: int) -> str:
        """Of the method at this place; the baseline, at 0, is ink."""
        return self.ink if place == 0 else self.series[(place - 1) % len(self.series)]


# Okabe and Ito's palette; orange and sky darker than theirs, for a contrast of 3 on white.
LIGHT = Theme(
    paper="#fdfdfd",
    ink="#14171c",
    muted="#5f656e",
    grid="#dde0e5",
    series=("#0072b2", "#d55e00", "#009e73", "#aa4499", "#a97800", "#2f8fc4"),
)
DARK = Theme(
    paper="#171a1f",
    ink="#f1f3f5",
    muted="#9aa1ab",
    grid="#333942",
    series=("#5ab4ec", "#ff8a3d", "#2ec99b", "#dd88cc", "#f0b429", "#9fd3f5"),
)
# Stand for the page's CSS variables; the names are those of `variables`.
STANDING_IN = Theme(
    paper="#fe0001",
    ink="#fe0002",
    muted="#fe0003",
    grid="#fe0004",
    series=("#fe0010", "#fe0011", "#fe0012", "#fe0013", "#fe0014", "#fe0015"),
)

DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (9, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
)
MARKERS = "osD^vPX"


def variables(theme: Theme) -> dict[str, str]:
    """The theme's colours by the name of their CSS variable."""
    # The baseline's first: where two variables have one colour, as its ink, the later name is the one in an SVG.
    methods = {f"m{place}": theme.colour(place) for place in range(len(theme.series) + 1)}
    return methods | {"paper": theme.paper, "ink": theme.ink, "muted": theme.muted, "grid": theme.grid}


def dash(place: int) -> Any:
    """Line style of the method at this place, for matplotlib. Beyond the colours, dashes shift against them."""
    return DASHES[(place + (max(place, 1) - 1) // len(LIGHT.series)) % len(DASHES)]


def marker(place: int) -> str:
    """Marker of the method at this place."""
    return MARKERS[place % len(MARKERS)]
