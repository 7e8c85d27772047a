"""Figures that have been measured: one JSON line each, so that a benchmark that was stopped goes on."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class Results:
    """What has been measured so far, by name; each figure is written down as soon as it is known.

    Names are paths, as "speed/2/multitask"; `under("speed")` gives what is below one.
    """

    def __init__(self, path: Path):
        self._path, self._values = path, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # cut short as the benchmark was killed
                continue
            self._values[record["name"]] = record["value"]

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """The figure of this name; measured now, unless it was before."""
        if name not in self._values:
            print(f"{name} …", end=" ", flush=True)
            self.put(name, measure())
            print(json.dumps(self._values[name])[:120], flush=True)
        return self._values[name]

    def put(self, name: str, value: Any) -> None:
        """Notes a figure; a later one of the same name takes its place."""
        self._values[name] = json.loads(json.dumps(value))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                file.write(b"" if file.read() == b"\n" else b"\n")  # behind a line that was cut short
            file.write(json.dumps({"name": name, "value": value}).encode() + b"\n")

    def get(self, name: str) -> Any:
        """A figure, or None if it has not been measured."""
        return self._values.get(name)

    def under(self, prefix: str) -> dict[str, Any]:
        """All figures whose names begin with "PREFIX/", by the rest of their names."""
        return {n.removeprefix(f"{prefix}/"): v for n, v in self._values.items() if n.startswith(f"{prefix}/")}

    def rounds(self, prefix: str, needed: Iterable[str] = ()) -> dict[str, list[Any]]:
        """Of figures named "PREFIX/ROUND/WHAT", what was measured in the rounds that are complete, in their order.

        Nothing, if something of what is `needed` has not been measured at all.
        """
        by_what: dict[str, dict[int, Any]] = {}
        for name, value in self.under(prefix).items():
            number, _, what = name.partition("/")
            if number.isdigit() and what:
                by_what.setdefault(what, {})[int(number)] = value
        if set(needed) - by_what.keys():
            return {}
        complete = set.intersection(*(set(of_what) for of_what in by_what.values())) if by_what else set()
        return {what: [of_what[n] for n in sorted(complete)] for what, of_what in by_what.items()}
