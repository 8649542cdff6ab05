"""The plots of parity.html. Each one is None where nothing of what it shows was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lfm2export.contract import MODEL_FILES
from lfm2export.report.facts import Sizes
from lfm2export.report.formats import FormatRow, FormatTable
from lfm2export.report.svg import BAD, DASHES, FAINT, GOOD, INK, MARKERS, SERIES, draw, plain
from lfm2export.verify.figures import CacheSeries, StepPoint
from lfm2export.verify.results import FileResult, Verification

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

#: Smallest value on a logarithmic axis; what is below, or exactly 0, is drawn there.
FLOOR = 1e-10

_KINDS = ("conv", "key", "value")
_ROLE_ORDER = (
    "embedding table",
    "feed forward",
    "attention",
    "short convolution",
    "norms",
    "scales and zero points",
    "other",
)


def kld_by_step(result: Verification) -> Markup | None:
    """Mean KLD of each step over the prompts, a line per file as shipped, against the source."""
    lines = {file.dtype: _by_step(file, _kld) for file in result.files if file.steps is not None}
    lines = {dtype: line for dtype, line in lines.items() if line}
    if not lines:
        return None

    def paint(axes: Axes) -> None:
        for dtype, line in lines.items():
            steps, values = zip(*line.items(), strict=True)
            color, marker, dash = _look(dtype)
            mark = marker if len(steps) <= 24 else "none"
            axes.plot(
                steps, [max(value, FLOOR) for value in values], color=color, ls=dash, marker=mark, label=plain(dtype)
            )
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("KLD, nats")
        _integers(axes)
        axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.45, 1.0), columnspacing=0.8, handlelength=1.4)

    return draw("kld", f"KLD per step for {', '.join(lines)}", 3.2, paint)


def top1_by_step(result: Verification) -> Markup | None:
    """A row per file, a tile per step: on which share of the prompts the reference's token comes first."""
    rows = {file.dtype: _by_step(file, _top1) for file in result.files if file.steps is not None}
    rows = {dtype: row for dtype, row in rows.items() if row}
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for number, row in enumerate(rows.values()):
            for step, equal in row.items():
                axes.add_patch(Rectangle((step - 0.44, number - 0.38), 0.88, 0.76, color=GOOD, alpha=0.55, lw=0))
                if equal < 1:
                    high = 0.76 * (1 - equal)
                    axes.add_patch(Rectangle((step - 0.44, number + 0.38 - high), 0.88, high, color=BAD, lw=0))
        axes.set_yticks(range(len(rows)), [plain(dtype) for dtype in rows])
        axes.set_xlim(-0.6, max(step for row in rows.values() for step in row) + 0.6)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("step")
        axes.grid(False)
        axes.tick_params(axis="y", length=0)
        _integers(axes)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return draw("top1", f"Same top token per step for {', '.join(rows)}", 0.75 + 0.34 * len(rows), paint)


def cache_error(file: FileResult) -> Markup | None:
    """Largest difference of every cache tensor by layer: as shipped (filled) and on the same weights (hollow)."""
    measured = [(part, name) for part, name in ((file.steps, True), (file.arithmetic, False)) if part is not None]
    points = [(found, shipped) for part, shipped in measured for found in part.caches if _worst(found) is not None]
    if not points:
        return None

    def paint(axes: Axes) -> None:
        for number, kind in enumerate(_KINDS):
            for shipped in (True, False):
                chosen = [found for found, form in points if form is shipped and found.kind == kind]
                color, marker = SERIES[number], MARKERS[number]
                fill = color if shipped else "none"
                axes.plot(
                    [found.layer for found in chosen],
                    [max(_worst(found) or 0, FLOOR) for found in chosen],
                    ls="none",
                    marker=marker,
                    mec=color,
                    mfc=fill,
                    label=kind if shipped else None,
                )
        axes.set_yscale("log")
        axes.set_xlabel("layer")
        axes.set_ylabel("largest difference")
        _integers(axes)
        axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), columnspacing=0.8, handletextpad=0.1)

    return draw(f"cache-{_identifier(file.dtype)}", f"Cache error by layer, {file.dtype}", 2.6, paint)


def size_by_role(result: Verification, sizes: Sizes) -> Markup | None:
    """A bar per file: bytes of its weights by what they are for."""
    shown = {file.dtype: sizes[file.dtype] for file in result.files if sizes.get(file.dtype)}
    if not shown:
        return None
    roles = [role for role in _ROLE_ORDER if any(found.get(role) for found in shown.values())]

    def paint(axes: Axes) -> None:
        for number, found in enumerate(shown.values()):
            left = 0.0
            for place, role in enumerate(roles):
                width = found.get(role, 0) / 1e6
                axes.barh(number, width, left=left, color=SERIES[place], height=0.62, label=None if number else role)
                left += width
            axes.annotate(
                f"{left:,.1f}", (left, number), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
            )
        axes.set_yticks(range(len(shown)), [plain(dtype) for dtype in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.set_xlabel("MB of weights")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.45, 1.0), columnspacing=0.9, handlelength=0.9)

    return draw("sizes", f"Bytes by role for {', '.join(shown)}", 1.55 + 0.36 * len(shown), paint)


def perplexity_by_bytes(result: Verification) -> Markup | None:
    """Each file's perplexity over its bytes, the reference's as a line."""
    points = [(file, found) for file in result.files for found in file.text or () if math.isfinite(found.perplexity)]
    if not points:
        return None
    routes = list(dict.fromkeys(found.route for _, found in points))

    def paint(axes: Axes) -> None:
        reference = points[0][1].reference_perplexity
        axes.axhline(reference, color=FAINT, ls="dashed", lw=1.2)
        named = set()
        for file, found in points:
            color, marker, _ = _look(file.dtype)
            fill = color if found.route == routes[0] else "none"
            name = None if file.dtype in named else plain(file.dtype)
            named.add(file.dtype)
            x = file.bytes / 1e6
            axes.plot([x], [found.perplexity], ls="none", marker=marker, mec=color, mfc=fill, ms=7, label=name)
        axes.margins(x=0.12, y=0.22)
        axes.ticklabel_format(useOffset=False)
        axes.set_xlabel("MB")
        axes.set_ylabel("perplexity")
        axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.45, 1.0), columnspacing=0.8, handletextpad=0.1)

    return draw("perplexity", "Perplexity against bytes", 3.0, paint)


def bits_where_they_pay(table: FormatTable) -> Markup | None:
    """What each matrix loses in 4 bits per megabyte, in the model's order; filled where 8 bits were chosen."""
    if not table.rows:
        return None

    def paint(axes: Axes) -> None:
        kinds = list(dict.fromkeys(_kind(row) for row in table.rows))
        for number, kind in enumerate(kinds):
            points = [(place, row) for place, row in enumerate(table.rows) if _kind(row) == kind]
            for bits, fill in ((8, SERIES[number % len(SERIES)]), (4, "none")):
                chosen = [(place, max(row.pays, FLOOR)) for place, row in points if row.bits == bits]
                axes.plot(
                    [place for place, _ in chosen],
                    [pays for _, pays in chosen],
                    ls="none",
                    marker=MARKERS[number % len(MARKERS)],
                    mec=SERIES[number % len(SERIES)],
                    mfc=fill,
                    label=plain(kind) if bits == 8 else None,
                )
        axes.set_yscale("log")
        axes.set_xlabel("matrix")
        axes.set_ylabel("KLD, nats a MB")
        _integers(axes)
        axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.45, 1.0), columnspacing=0.8, handletextpad=0.1)

    return draw("formats", "What each matrix loses in 4 bits per megabyte", 3.2, paint)


def _kind(row: FormatRow) -> str:
    """`in_proj`, `q k v`, `w1 w3`, `table`, ...: what a matrix is, whatever its layer."""
    base, *others = row.matrix.split("+")
    name = base.split(".")[-2]
    if "layers" not in base.split("."):
        return "head" if name == "lm_head" else "table"
    owner = "attention " if "self_attn" in base and name == "out_proj" else ""
    return owner + " ".join(part.removesuffix("_proj") if others else part for part in (name, *others))


def _look(dtype: str) -> tuple[str, str, str]:
    """Colour, marker and dashes of a dtype, the same in every plot."""
    number = list(MODEL_FILES).index(dtype) if dtype in MODEL_FILES else len(MODEL_FILES)
    return SERIES[number], MARKERS[number], DASHES[number]


def _by_step(file: FileResult, read: Callable[[StepPoint], float | None]) -> dict[int, float]:
    """Mean over the prompts of what `read` finds at each step, steps without a figure left out."""
    values: dict[int, list[float]] = {}
    for point in file.steps.points if file.steps is not None else ():
        value = read(point)
        if value is not None:
            values.setdefault(point.step, []).append(value)
    # each by the count: the sum of what a record says may be beyond float64
    return {step: sum(value / len(found) for value in found) for step, found in sorted(values.items())}


def _kld(point: StepPoint) -> float | None:
    value = point.logits.kld
    return value if value is not None and math.isfinite(value) else None


def _top1(point: StepPoint) -> float | None:
    return float(point.logits.top1_equal)


def _worst(found: CacheSeries) -> float | None:
    """The largest finite difference; None where there is none."""
    finite: Sequence[float] = [value for value in found.max_abs if math.isfinite(value)]
    return max(finite, default=None)


def _integers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _identifier(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)
