"""A matplotlib figure as SVG for embedding in a page: unique ids, the page's font and the page's colors."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from xml.etree import ElementTree

from matplotlib import style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# These colors become the page's variables of the same name, so that figures follow the light, dark and print themes.
INK, FAINT, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
FIRST, SECOND = "#050505", "#060606"
_VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper", FIRST: "first", SECOND: "second"}

# Text stays text ("none"): it can be searched, copied and read aloud, and scripts that DejaVu lacks are drawn by the browser. It is
# laid out in DejaVu Sans, which is wider than usual browser fonts, so that nothing overlaps.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "embridge",
    "text.parse_math": False,  # a label is never a formula
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.unicode_minus": True,
    "legend.frameon": False,
    "figure.facecolor": "none",
}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of the given size in pixels in the page's style, whatever the user's own style is."""
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has the glyph
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an ``svg`` element, to be called within `drawing`.

    Parameters
    ----------
    figure : Figure
    name : str
        Prefix of its ids, which makes them unique on the page.
    title, description : str
        Description for screen readers.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 (written by matplotlib above)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.text, element.tail = (part if part and part.strip() else None for part in (element.text, element.tail))
        element.attrib = {_local(key): value for key, value in element.attrib.items()}
    used = {found for element in root.iter() for value in element.attrib.values() for found in _REFERENCE.findall(value)}
    used |= {element.attrib["href"][1:] for element in root.iter() if "href" in element.attrib}
    for element in root.iter():
        attributes = element.attrib
        if attributes.get("id") in used:
            attributes["id"] = f"{name}-{attributes['id']}"
        else:
            attributes.pop("id", None)
        if "href" in attributes:
            attributes["href"] = f"#{name}-{attributes['href'][1:]}"
        for key, value in attributes.items():
            attributes[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)
        if "style" in attributes:
            attributes["style"] = _page_style(attributes["style"])
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def printable(text: object, limit: int) -> str:
    """Text from the data on one line of a figure: without control characters, cut where it is long."""
    clean = "".join(c if c.isprintable() else " " for c in str(text))
    return clean if len(clean) <= limit else clean[: limit - 1] + "\u2026"


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _page_style(value: str) -> str:
    """A style with the page's colors and font."""
    value = re.sub(r"#[0-9a-f]{6}", lambda m: f"var(--{_VARIABLES[m[0]]})" if m[0] in _VARIABLES else m[0], value)
    return re.sub(r"font-family: [^;]*;? ?", "", value)
