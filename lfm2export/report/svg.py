"""matplotlib figures as inline SVG that takes its colours and fonts from the page, so that dark mode reaches them.

Colours are drawn as the placeholders below and replaced by CSS variables afterwards. Text stays text. The output
depends on the figure alone: ids are hashed from its name, and no date is written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from lfm2export.untrusted.escape import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Pixels per inch of the viewBox; a figure of 4.4 x 3 inches is 317 x 216 units, what a phone has.
UNITS = 72

INK, FAINT, GOOD, BAD = "#e00001", "#e00002", "#e00003", "#e00004"
SERIES = ("#e00010", "#e00011", "#e00012", "#e00013", "#e00014", "#e00015", "#e00016", "#e00017")
#: Drawn differently too, for those who do not tell the colours apart.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("solid", "dashed", "dotted", "dashdot", "solid", "dashed", "dotted", "dashdot")

_VARIABLES = {INK: "--ink", FAINT: "--faint", GOOD: "--good", BAD: "--bad"} | {
    color: f"--s{number}" for number, color in enumerate(SERIES)
}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


def draw(name: str, title: str, height: float, paint: Callable[[Axes], None], *, width: float = 4.4) -> Markup:
    """An `<svg>` element of `width` x `height` inches; `paint` fills its axes, and `title` describes it to readers."""
    with _silent():
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

    # The library's own settings first: a matplotlibrc of the current folder, or of the user's, is none of a report's.
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    style: Any = defaults | _STYLE | {"svg.hashsalt": name}  # the stub knows each key's type, a table of ours does not
    with _silent(), matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        paint(axes)
        written = io.StringIO()
        canvas.print_svg(  # type: ignore[no-untyped-call]
            written, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return Markup(_inline(written.getvalue(), name, title))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What matplotlib says of a home that is not writable, or of settings that it cannot read, is not said."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def plain(text: str) -> str:
    """`text` as a label that matplotlib takes for words, not for a formula, and that fits a figure."""
    return one_line(text)[:40].replace("$", r"\$")


def _inline(document: str, name: str, title: str) -> str:
    """The document as an element of a page: no prolog, metadata or style sheet, ids its own, colours the page's."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<style type="text/css">.*?</style>', "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', element)
    element = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', element)
    element = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", element)
    element = re.sub(r"font-family: [^;\"]+;? ?", "", element)
    element = re.sub(r"font: ?((?:\w+ )*)([\d.]+)px [^;\"]+", _font, element)
    for color, variable in _VARIABLES.items():
        element = element.replace(color, f"var({variable})")
    size = re.search(r'viewBox="[^"]+"', element)
    opening = f'<svg {size.group() if size else ""} role="img" aria-label="{escape(title)}">'
    return opening + element[element.index(">") + 1 :].strip()


def _font(shorthand: re.Match[str]) -> str:
    """`font: bold 9px 'DejaVu Sans', ...` without the family, which is the page's."""
    weight = "font-weight: bold; " if re.search(r"bold|700", shorthand.group(1)) else ""
    return f"{weight}font-size: {shorthand.group(2)}px"
