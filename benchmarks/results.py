"""Measured results, one JSON line each, so that an interrupted benchmark can be continued."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class Results:
    """The results so far by name; each is written to the file as soon as it is measured.

    Names are paths such as "speed/2/multitask"; `under("speed")` returns the results below a path.
    """

    def __init__(self, path: Path):
        self._path, self._values = path, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # truncated when the benchmark was killed
                continue
            self._values[record["name"]] = record["value"]

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """Returns a result, and measures it first if it is missing."""
        if name not in self._values:
            print(f"{name} …", end=" ", flush=True)
            self.put(name, measure())
            print(json.dumps(self._values[name])[:120], flush=True)
        return self._values[name]

    def put(self, name: str, value: Any) -> None:
        """Stores a result; a later one with the same name replaces it."""
        self._values[name] = json.loads(json.dumps(value))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                file.write(b"" if file.read() == b"\n" else b"\n")  # after a truncated line
            file.write(json.dumps({"name": name, "value": value}).encode() + b"\n")

    def get(self, name: str) -> Any:
        """Returns a result, or None if it has not been measured."""
        return self._values.get(name)

    def under(self, prefix: str) -> dict[str, Any]:
        """All results whose names begin with "PREFIX/", by the rest of their names."""
        return {n.removeprefix(f"{prefix}/"): v for n, v in self._values.items() if n.startswith(f"{prefix}/")}

    def rounds(self, prefix: str, needed: Iterable[str] = ()) -> dict[str, list[Any]]:
        """Results named "PREFIX/ROUND/WHAT" as {WHAT: results of the complete rounds, in order}.

        Empty if one of the names in `needed` has not been measured at all.
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
