"""`python -m multitask.compare`: a table, and a page with the curves, of several runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, mistakes_in_one_line
from ..tracking.comparison import Contender, Line, compare, comparison_page, differing_settings, read_contender
from ..utils import write_atomically
from .console import format_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m multitask.compare",
        description="Compares runs: what differs in their settings, their last evaluations, their curves. Differences "
        "to the first run have 95 %% intervals of the paired bootstrap over validation rows (and seeds).",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or one of --seeds' runs")
    parser.add_argument(
        "--output", type=Path, metavar="PAGE", help="an HTML file; by default comparison.html beside the first run"
    )
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="resamples of the bootstrap (1000)")
    options = parser.parse_args(arguments)
    with mistakes_in_one_line():
        if options.samples < 1:
            raise UserError(f"--samples: {options.samples} is not a number from 1 up")
        page = options.output or options.runs[0].resolve().parent / "comparison.html"
        if page.is_dir() or not page.resolve().parent.is_dir():
            raise UserError(f"--output: {page} is no file in a folder that exists (seen from {Path.cwd()})")
        contenders = [read_contender(path) for path in options.runs]
        settings = differing_settings(contenders)
        if settings:
            print(format_table([("setting", *(c.name for c in contenders)), *((key, *v) for key, v in settings)]))
        else:
            print("Nothing differs in the settings.")
        lines = compare(contenders, options.samples)
        print(f"\n{results(contenders, lines)}")
        write_atomically(page, comparison_page(contenders, settings, lines))
        print(f"\nThe curves are in {page}")
    return 0


def results(contenders: Sequence[Contender], lines: Sequence[Line]) -> str:
    """The table of results; a star marks an interval that does not contain 0."""
    head = ["task", "metric", contenders[0].name]
    for contender in contenders[1:]:
        head += [contender.name, f"difference to {contenders[0].name}"]
    table = [head]
    for line in lines:
        cells = [line.task, line.metric]
        for value, deviation, difference in zip(line.values, line.deviations, line.differences, strict=True):
            spread = "" if deviation is None else f" ± {deviation:.4f}"
            cells.append("–" if value is None else f"{value:.4f}{spread}")
            if difference is None:
                cells.append("–")
            else:
                star = "*" if difference.is_significant else " "
                cells.append(f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]{star}")
        del cells[3]  # the first one's difference to itself
        table.append(cells)
    return format_table(table)


if __name__ == "__main__":
    sys.exit(main())
