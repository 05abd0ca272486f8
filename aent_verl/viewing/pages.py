"""What our HTML pages share: their templates, figures as SVG, and how numbers are written."""

import io
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from aent_verl.viewing.palette import STANDING_IN, variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING = "—"
# A hundredth of a pixel is enough.
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font-family: [^;\"]*;?|font: ([\d.]+px) [^;\"]*")
_COLOUR = re.compile("|".join(variables(STANDING_IN).values()))
_VARIABLE = {colour: f"var(--{name})" for name, colour in variables(STANDING_IN).items()}
# What a page has no use for; a title would show as a tooltip over the whole chart.
_DROPPED = ("metadata", "title", "style")


def template(package: str, *filters: Callable[..., Any]) -> Template:
    """Load the package's ``page.html``; it knows these filters by name and escapes all that is put into it."""
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {each.__name__.lstrip("_"): each for each in filters}
    return environment.get_template("page.html")


def number(value: float | None, signed: bool = False) -> str:
    """Write a number in three digits; a dash for None."""
    if value is None:
        return NOTHING
    if math.isnan(value):
        return "NaN"
    # Without the sign of a zero.
    return f"{value:+.3g}" if signed and value else f"{value or 0:.3g}"


def decimal(value: float | None, signed: bool = False, digits: int = 3) -> str:
    """Write fixed decimals without the leading zero, one from 10 on, none from 1000 on; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    if abs(value) >= 10:
        return f"{value:{'+' if signed else ''},.{1 if abs(value) < 1000 else 0}f}"
    # Without the sign of what rounds to zero.
    value = round(value, digits) or 0.0
    words = f"{value:{'+' if signed and value else ''}.{digits}f}"
    return words.replace("0.", ".", 1) if abs(value) < 1 else words


def p_value(value: float | None) -> str:
    """Write a p-value; "< .001" below that."""
    return "< .001" if value is not None and value < 0.001 else decimal(value)


def amount(value: float | None) -> str:
    """Write a large number in three digits and a unit, as "1.23 M"; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    # Before its unit is chosen: 999,600 is a million.
    value = float(f"{value:.3g}")
    units = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
    size, unit = next((each for each in units if abs(value) >= each[0]), (1, ""))
    return f"{value / size:.3g}{unit}"


def inline_svg(figure: "Figure", name: str, label: str) -> Markup:
    """Return the figure as an ``<svg>`` element that follows the page's width and theme.

    An artist's gid that starts with a dot, as in ``.s1``, becomes its class; every id that something refers to gets
    ``name`` in front, so that it is unique on the page, and the others go.

    Args:
        figure: drawn in the colours of `aent_verl.viewing.palette.STANDING_IN`.
        name: of the chart; letters, digits, underscores and hyphens.
        label: what the chart shows, for those who cannot see it.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root.iter()):
        element.tag = _local(element.tag)
        element.attrib = dict(_attributes(element, name))
        element[:] = [child for child in element if _local(child.tag) not in _DROPPED]
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
    root.attrib = {"role": "img", "aria-label": label, "viewBox": root.attrib["viewBox"]}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _attributes(element: ElementTree.Element, name: str) -> Iterator[tuple[str, str]]:
    """Yield the attributes that an element keeps."""
    for key, value in element.attrib.items():
        key, value = _local(key), _REFERENCE.sub(rf"url(#{name}-\1)", value)
        value = _LONG_NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value)
        if key == "id" and value.startswith("."):
            yield "class", value[1:]
        elif key == "id":
            # Of artists without a class: only definitions are referred to.
            if element.tag not in ("g", "svg"):
                yield key, f"{name}-{value}"
        elif key == "href":
            yield key, f"#{name}-{value[1:]}"
        elif key == "style":
            # The page's font instead of matplotlib's.
            value = _FONT.sub(lambda match: f"font-size: {match[1]}" if match[1] else "", value)
            yield key, _COLOUR.sub(lambda match: _VARIABLE[match[0]], value)
        else:
            yield key, " ".join(value.split())


def _local(name: str) -> str:
    """Drop the namespace, which HTML does not know."""
    return name.rpartition("}")[2]
