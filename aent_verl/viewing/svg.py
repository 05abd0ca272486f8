"""A matplotlib figure as SVG for the inside of an HTML page: its colours are CSS variables, its text is text."""

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from aent_verl.viewing.palette import STANDING_IN, variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A hundredth of a pixel is enough.
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font-family: [^;\"]*;?|font: ([\d.]+px) [^;\"]*")
_COLOUR = re.compile("|".join(variables(STANDING_IN).values()))
_VARIABLE = {colour: f"var(--{name})" for name, colour in variables(STANDING_IN).items()}
# What the page has no use for; a title would show as a tooltip over the whole chart.
_DROPPED = ("metadata", "title", "style")


def inline_svg(figure: "Figure", name: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element that follows the page's width and theme.

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
    _clean(root, name)
    root.attrib = {"role": "img", "aria-label": label, "viewBox": root.attrib["viewBox"]}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element, name: str) -> None:
    element.tag = _local(element.tag)
    attributes = {}
    for key, value in element.attrib.items():
        value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
        value = _LONG_NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value)
        key = _local(key)
        if key == "id":
            # Ids of artists that are no class: only definitions are referred to.
            if value.startswith("."):
                key, value = "class", value[1:]
            elif element.tag in ("g", "svg"):
                continue
            else:
                value = f"{name}-{value}"
        elif key == "href":
            value = f"#{name}-{value[1:]}"
        elif key == "style":
            value = _COLOUR.sub(lambda match: _VARIABLE[match[0]], _FONT.sub(_size, value))
        elif key == "d":
            value = " ".join(value.split())
        attributes[key] = value
    element.attrib = attributes
    for child in list(element):
        if _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _clean(child, name)
            child.tail = None
    if element.text is not None and not element.text.strip():
        element.text = None


def _size(match: re.Match[str]) -> str:
    """The page's font instead of matplotlib's."""
    return f"font-size: {match[1]}" if match[1] else ""


def _local(name: str) -> str:
    """Without the namespace, which HTML does not know."""
    return name.rpartition("}")[2]
