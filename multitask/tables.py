"""Tables in the terminal."""

from collections.abc import Sequence


def format_table(lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a ruled head: the first two to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])
