"""Writes the benchmarks page and its chart."""

from pathlib import Path
from statistics import median

from . import gpu, growth, labels, processes, quality, speed
from .figures import ratios
from .results import Results

TITLES = {
    "multitask": "this project",
    "predecessor": "predecessor",
    "trainer": "Trainer",
    "tasknet": "tasknet",
    "limit": "limit",
    "grouped_trainer": "Trainer, grouped",
}


def write(results: Results, page: Path) -> None:
    """Writes `page`, and its chart as an SVG beside it, from the results measured so far."""
    page.parent.mkdir(parents=True, exist_ok=True)
    picture = page.with_suffix(".svg")
    machine = results.get("machine") or {}
    head = [
        "# Benchmarks",
        "Written by `make bench` from what it measured; `make bench-gpu` adds GPUs. Contenders take turns, round by "
        "round, and ratios are those of one round: **median** (smallest–largest). Machines are noisy, so no figure in "
        "seconds means much by itself.",
        "\n".join(f"- {what}: {found}" for what, found in machine.items()),
    ]
    if results.get("smoke"):
        head.insert(1, "**A smoke run: it shows that the benchmarks work; the figures mean nothing.**")
    if _draw(results, picture):
        head.append(f"![Speed beside the alternatives, and time a real token by the number of tasks]({picture.name})")
    sections = {
        m.__name__.split(".")[-1]: m.section(results) for m in (speed, growth, processes, labels, quality, gpu)
    }
    if missing := [name for name, section in sections.items() if not section]:
        head.append(f"Not measured yet: {', '.join(missing)}.")
    page.write_text("\n\n".join([*head, *filter(None, sections.values())]) + "\n")


def _draw(results: Results, path: Path) -> bool:
    """Draws the results measured so far; returns False if there are none."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {
        "svg.hashsalt": "benchmarks",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    from matplotlib import pyplot

    bars = speed.picture_rows(results)
    lines = {
        "full fine-tuning": growth.seconds_by_count(results, "tasks"),
        "a LoRA for each": growth.seconds_by_count(results, "adapters"),
    }
    lines = {label: by_count for label, by_count in lines.items() if by_count}
    if not bars and not lines:
        return False
    count = bool(bars) + bool(lines)
    figure, axes = pyplot.subplots(1, count, figsize=(4.5 * count, 3), layout="constrained", squeeze=False)
    if bars:
        axis = axes[0, 0]
        drawn = axis.barh(
            [TITLES[name] for name, _ in bars][::-1], [share for _, share in bars][::-1], color="#4477aa"
        )
        axis.bar_label(drawn, fmt="%.2f", padding=3)
        axis.margins(x=0.15)
        axis.set_title("real tokens a second, this project = 1")
    if lines:
        axis = axes[0, -1]
        for label, by_count in lines.items():
            base = next(iter(by_count.values()))
            shares = [ratios(of_count, base) for of_count in by_count.values()]
            middles = [median(of_count) for of_count in shares]
            below = [middle - min(of_count) for middle, of_count in zip(middles, shares, strict=True)]
            above = [max(of_count) - middle for middle, of_count in zip(middles, shares, strict=True)]
            axis.errorbar(list(by_count), middles, [below, above], marker="o", capsize=3, label=label)
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_title("time a real token, with the fewest tasks = 1")
        axis.set_xlabel("tasks")
        axis.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True
