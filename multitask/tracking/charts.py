"""SVG charts that inherit the page's colours (light or dark) and scale with the width of the screen."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

INK, FAINT = "#010203", "#040506"  # placeholders, replaced in the SVG by the page's colours


PALETTE = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#b07aa1",
    "#9c755f",
    "#3aa6a0",
    "#d37295",
    "#b6992d",
    "#8a8a8a",
)


COLD, WARM = PALETTE[0], PALETTE[1]


MOST_POINTS = 500


Curve = tuple[Sequence[float], Sequence[float]]


STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "multitask",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "lines.linewidth": 1.6,
}


class _Drawing:
    """Holds the SVG of a figure once it has been rendered."""

    svg = Markup("")


@contextmanager
def drawing(title: str, height: float = 2.7, width: float = 4.8) -> Iterator[tuple[Axes, _Drawing]]:
    """Yields axes to draw on; on exit the drawing's `svg` is set. `title` is the label for screen readers."""
    drawn = _Drawing()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), drawn
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' id="[a-zA-Z.]+_\d+"', "", svg)  # duplicated in every figure, and never referenced
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(title)}"', 1)
    drawn.svg = Markup(svg)


def lines(title: str, curves: Mapping[str, Curve], unit: str = "") -> Markup:
    """A line chart of named curves over the steps."""
    with drawing(title, height=2.6 + 0.1 * len(curves)) as (axes, drawn):
        for number, (name, (steps, values)) in enumerate(curves.items()):
            x, y = thinned(steps, values)
            style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(x) <= 30 else {}
            axes.plot(x, y, label=_plain(name), color=PALETTE[number % len(PALETTE)], clip_on=False, **style)
        axes.margins(x=0)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(curves) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return drawn.svg


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Reduces a long curve to `MOST_POINTS` points, each the mean of consecutive points."""
    if len(steps) <= MOST_POINTS:
        return list(steps), list(values)
    parts = [np.array_split(np.asarray(of, float), MOST_POINTS) for of in (steps, values)]
    x, y = ([float(part.mean()) for part in of] for of in parts)
    return x, y


def bars(title: str, segments: Sequence[str], of_names: Mapping[str, Sequence[float]], stacked: bool = True) -> Markup:
    """Horizontal bars for each name: its segments stacked in one bar, or as separate bars below each other."""
    with drawing(title, height=1.1 + (0.3 if stacked else 0.42) * len(of_names)) as (axes, drawn):
        places = np.arange(len(of_names))
        thickness = 0.7 if stacked else 0.8 / len(segments)
        left = np.zeros(len(of_names))
        for number, segment in enumerate(segments):
            values = np.asarray([of[number] for of in of_names.values()], float)
            at = places if stacked else places + (number - (len(segments) - 1) / 2) * thickness
            drawn_bars = axes.barh(
                at, values, thickness * 0.92, left=left, color=PALETTE[number], label=_plain(segment)
            )
            if not stacked:
                axes.bar_label(drawn_bars, [f"{value:.1%}" for value in values], padding=3, fontsize=8)
            left = left + values if stacked else left
        axes.set_yticks(places, [_short(name) for name in of_names])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        if not stacked:
            axes.xaxis.set_major_formatter("{x:.0%}")
            axes.margins(x=0.15)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(segments))
    return drawn.svg


def scatter(title: str, true: Sequence[float], predicted: Sequence[float]) -> Markup:
    """Predicted against true values, with the line on which they are equal."""
    with drawing(title, height=4.2) as (axes, drawn):
        ends = [min([*true, *predicted]), max([*true, *predicted])]
        axes.plot(ends, ends, color=FAINT, linewidth=1)
        axes.scatter(true, predicted, s=9, color=COLD, alpha=0.55, linewidths=0)
        axes.set_xlabel("label")
        axes.set_ylabel("predicted")
    return drawn.svg


def reliability(title: str, bins: Mapping[str, Sequence[tuple[float, float, int]]]) -> Markup:
    """Accuracy over confidence, before and after a calibration, with the line on which they are equal.

    Args:
        title: for screen readers.
        bins: (mean confidence, accuracy, number of decisions) of each bin, by the name of the curve.
    """
    with drawing(title, height=3.8) as (axes, drawn):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        for number, (name, of_curve) in enumerate(bins.items()):
            confidence, accuracy, counts = np.asarray(of_curve, float).T
            sizes = 8 + 80 * counts / counts.sum()  # a large mark is of many decisions
            axes.plot(confidence, accuracy, color=PALETTE[number], linewidth=1)
            axes.scatter(confidence, accuracy, s=sizes, color=PALETTE[number], label=name, alpha=0.8, linewidths=0)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that is right")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return drawn.svg


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    shade: ArrayLike,
    texts: Sequence[Sequence[str]],
    axis_names: tuple[str, str] = ("", ""),
) -> Markup:
    """A heat map with a text in each cell; `shade` is from -1 (warm colour) through 0 (none) to 1 (cold)."""
    shade = np.nan_to_num(np.asarray(shade, float))
    longest = max(map(len, columns), default=0)
    with drawing(title, height=1.3 + 0.32 * len(rows) + 0.06 * min(longest, 36) * (longest * len(columns) > 45)) as (
        axes,
        drawn,
    ):
        for (row, column), value in np.ndenumerate(shade):
            color = matplotlib.colors.to_rgba(COLD if value >= 0 else WARM, min(abs(value), 1) * 0.75)
            axes.add_patch(
                matplotlib.patches.Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor="none")
            )
            axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=8 if len(columns) < 9 else 6)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        upright = longest * len(columns) > 45
        axes.set_xticks(range(len(columns)), [_short(name, 36) for name in columns], rotation=90 if upright else 0)
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.set_ylabel(axis_names[0])
        axes.set_xlabel(axis_names[1])
        axes.grid(visible=False)
        axes.tick_params(length=0)
    return drawn.svg


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _plain(name: str) -> str:
    """A label that the legend shows: matplotlib hides labels that start with an underscore."""
    return name.lstrip("_") or "-"
