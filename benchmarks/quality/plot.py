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
        figure = Figure(figsize=(7.6, 4.8), layout="constrained")
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
    _label(axes, results, drawn)
    axes.set_yscale("log")
    axes.set_xlabel("bits a weight, all weights of the file")
    axes.set_ylabel("KLD to transformers fp32, nats a token")
    axes.set_title(f"{results.checkpoint}: what quantization costs, file as it runs", loc="left", fontsize=10)
    axes.legend(loc="upper right")
    return drawn


def _point(results: Results, row: Row) -> tuple[float, float, float]:
    figures, bits = row.columns["prefill"], results.bits_per_weight(row)
    assert figures is not None and figures.kld.mean is not None and bits is not None
    return bits, figures.kld.mean, figures.kld.standard_error or 0.0


def _label(axes: Axes, results: Results, rows: list[Row]) -> None:
    """Names beside the points; one that would cover its neighbour's goes to the other side."""
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: _point(results, row)[1]):
        bits, kld, _ = _point(results, row)
        near = any(abs(bits - x) < 0.45 and 0.94 < kld / y < 1.06 for x, y in placed)
        axes.annotate(
            row.name,
            (bits, kld),
            (-6, 0) if near else (6, 0),
            textcoords="offset points",
            ha="right" if near else "left",
            va="center",
            fontsize=6.5,
            color="#333333",
        )
        placed.append((bits, kld))
