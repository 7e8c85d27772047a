"""Formatting of results: tables, ratios with their spread, goals met or missed."""

from collections.abc import Iterable, Sequence
from statistics import mean, median, stdev


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are right-aligned numbers."""
    lines = [" | ".join(header), " | ".join(["---"] + ["---:"] * (len(header) - 1))]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """The ratio of value to other value in each round."""
    return [value / other for value, other in zip(values, others, strict=True)]


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """The median with the minimum and maximum."""
    if not values:
        return "not measured"
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"**{middle}{unit}** ({low}–{high})"


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    """The mean, with the standard deviation if there are several values."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}" if values else "–"


def verdict(value: float | None, goal: float, at_most: bool = False, reason: str = "") -> str:
    """Whether a goal is met, with the reason if it is not."""
    if value is None:
        return "not measured"
    is_met = value <= goal if at_most else value >= goal
    return "met" if is_met else f"**missed** ({reason})" if reason else "**missed**"


def middle(values: Sequence[float]) -> float | None:
    """The median; None without values."""
    return median(values) if values else None
