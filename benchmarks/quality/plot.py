"""The results as one picture: KLD against bits a weight, a colour and a mark per family.

Lower and further left is better.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: family -> (colour, mark); colours of Okabe and Ito, told apart by colour-blind readers too.
LOOKS = {
    "lfm2-export": ("#0072b2", "o"),
    "onnxruntime": ("#e69f00", "s"),
    "onnxruntime-genai": ("#d55e00", "^"),
    "llama.cpp": ("#009e73", "D"),
}

#: Points that a letter of a name is wide and a line high, and where around its point a name is tried.
WIDTH, HEIGHT = 3.6, 8.0
OFFSETS = [
    (6.0, 0.0),
    *((dx, dy * sign) for dx in (8.0, 24.0, 48.0) for dy in (9.0, 18.0, 27.0, 36.0, 45.0) for sign in (1, -1)),
]

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quality",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def draw(results: Results, path: Path) -> None:
    """Write the plot to `path`, an SVG; equal results give equal bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 6.6), layout="constrained")
        paint(figure.subplots(), results)
        figure.savefig(path, format="svg", metadata={"Date": None})


def paint(axes: Axes, results: Results) -> list[Row]:
    """The rows that were measured, drawn; those are returned."""
    drawn = []
    for family, (color, mark) in LOOKS.items():
        rows = [row for row in results.rows if row.family == family and row.columns["prefill"] is not None]
        points = [_point(results, row) for row in rows]
        if not points:
            continue
        bits, klds, errors = zip(*points, strict=True)
        axes.errorbar(bits, klds, yerr=errors, fmt=mark, color=color, ms=5.5, lw=1, mec="white", mew=0.6, label=family)
        drawn += rows
    axes.set_yscale("log")
    axes.set_xlabel("bits a weight, all weights of the file")
    axes.set_ylabel("KLD to transformers fp32, nats a token")
    axes.set_title(f"{results.checkpoint}: what quantization costs, file as it runs", loc="left", fontsize=10)
    axes.legend(loc="upper right")
    axes.margins(0.12, 0.08)
    _label(axes, results, drawn)
    return drawn


def _point(results: Results, row: Row) -> tuple[float, float, float]:
    figures, bits = row.columns["prefill"], results.bits_per_weight(row)
    assert figures is not None and figures.kld.mean is not None and bits is not None
    return bits, figures.kld.mean, figures.kld.standard_error or 0.0


def _label(axes: Axes, results: Results, rows: list[Row]) -> None:
    """Names beside the points, each at the first place around its point that covers no point and no other name."""
    axes.figure.canvas.draw()  # limits and scales are final only then
    scale = axes.figure.dpi / 72
    points = {row.name: _point(results, row)[:2] for row in rows}
    spots = {name: axes.transData.transform(point) / scale for name, point in points.items()}
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in spots.values()]
    places = [(side, dx, dy) for dx, dy in OFFSETS for side in ("left", "right")]
    for name, (x, y) in sorted(spots.items(), key=lambda item: item[1][1]):
        width = WIDTH * len(name)
        boxes = {}
        for side, dx, dy in places:
            left = x + dx if side == "left" else x - dx - width
            boxes[side, dx, dy] = (left, y + dy - HEIGHT / 2, left + width, y + dy + HEIGHT / 2)
        free = (place for place, box in boxes.items() if not any(_meet(box, other) for other in taken))
        side, dx, dy = place = next(free, places[0])
        taken.append(boxes[place])
        axes.annotate(
            name,
            points[name],
            (dx if side == "left" else -dx, dy),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=6.5,
            color="#333333",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#999999", "shrinkA": 0, "shrinkB": 3} if dy else None,
        )


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
