"""Streams rows to predict from, and predictions to, JSON Lines, CSV and Parquet files."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ..errors import UserError, first_line, hint
from ..tasks.base import TASK_TYPES
from ..utils import flatten

SUFFIXES = (".jsonl", ".csv", ".parquet")


def check_paths(source: str, target: str) -> None:
    """Rejects an input that cannot be read and an output that cannot be written.

    Raises:
        UserError: naming the option and what was found.
    """
    for option, name in (("--input", source), ("--output", target)):
        if Path(name).suffix not in SUFFIXES:
            raise UserError(f"{option}: {name} is of no known kind{hint(Path(name).suffix, SUFFIXES, 'endings')}")
    if not Path(source).is_file():
        raise UserError(f"--input: there is no file {source} (seen from {Path.cwd()})")
    if not Path(target).parent.is_dir():
        raise UserError(f"--output: there is no folder {Path(target).parent} (seen from {Path.cwd()})")
    if Path(target).is_dir():
        raise UserError(f"--output: {target} is a folder")
    for written in (target, f"{target}.partial", bad_rows_file(target)):
        if Path(written).exists() and Path(written).samefile(source):
            raise UserError(f"--output: {target} would replace the input {source}")


def bad_rows_file(target: str) -> str:
    """Path of the file with the rows that could not be predicted."""
    return f"{target}.bad.jsonl"


def read_rows(source: str) -> Iterator[dict[str, Any] | UserError]:
    """Yields the rows of a file in order, read lazily; in place of a row that cannot be read, its `UserError`.

    Args:
        source: file of JSON Lines (empty lines are skipped), CSV with a header line, or Parquet.

    Raises:
        UserError: if the file as a whole cannot be read.
    """
    try:
        if source.endswith(".parquet"):
            table = parquet.ParquetFile(source)
            for batch in table.iter_batches(batch_size=1024) if table.metadata.num_rows else ():
                yield from batch.to_pylist()
        else:
            with open(source, encoding="utf-8-sig", newline="") as file:
                yield from _csv_rows(file) if source.endswith(".csv") else _json_rows(file)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"--input: {source} cannot be read: {first_line(error)}") from error


def _json_rows(file: Any) -> Iterator[dict[str, Any] | UserError]:
    for line in file:
        if line.strip():
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else UserError(f"holds {line.strip()[:40]!r}, not one JSON object")
            except ValueError as error:
                yield UserError(f"is not JSON: {first_line(error)}")


def _csv_rows(file: Any) -> Iterator[dict[str, Any] | UserError]:
    lines = csv.reader(file)
    head = next(lines, [])
    for fields in lines:
        if len(fields) == len(head):
            yield dict(zip(head, fields, strict=True))
        elif fields:
            yield UserError(f"has {len(fields)} fields, the head line {len(head)}")


@contextmanager
def prediction_file(target: str) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yields a function that appends rows to a file, which is named `TARGET.partial` until it is complete.

    JSON Lines keep nested rows; CSV and Parquet have one column per leaf (`rte.label`), CSV with lists as JSON.
    """
    partial = Path(f"{target}.partial")
    if target.endswith(".parquet"):
        _create(partial).close()
        writers: list[parquet.ParquetWriter] = []

        def write_parquet(rows: list[dict[str, Any]]) -> None:
            flat = [flatten(row) for row in rows]
            if flat and not writers:
                schema = pa.schema([(name, _arrow_type(name, value)) for name, value in flat[0].items()])
                writers.append(parquet.ParquetWriter(partial, schema))
            if flat:
                writers[0].write_table(pa.Table.from_pylist(flat, schema=writers[0].schema))

        try:
            yield write_parquet
        finally:
            for writer in writers:
                writer.close()
    else:
        with _create(partial) as file:
            yield _csv_writer(file) if target.endswith(".csv") else _json_writer(file)
    if partial.exists():
        partial.replace(target)


def _create(path: Path) -> Any:
    try:
        return path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written: {error.strerror}") from error


def _arrow_type(name: str, value: Any) -> pa.DataType:
    if isinstance(value, list) and name.endswith(".probabilities"):
        return pa.list_(pa.float64())
    if name == "row":
        return pa.int64()
    if ".probabilities." in name:
        return pa.float64()
    types = {field: kind for task_type in TASK_TYPES.values() for field, kind in task_type.answer_types.items()}
    return types.get(name.rpartition(".")[2], pa.float64())


def _json_writer(file: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv_writer(file: Any) -> Callable[[list[dict[str, Any]]], None]:
    writers: list[csv.DictWriter] = []

    def write(rows: list[dict[str, Any]]) -> None:
        for row in map(flatten, rows):
            if not writers:
                writers.append(csv.DictWriter(file, list(row)))
                writers[0].writeheader()
            lists = {n: json.dumps(v, ensure_ascii=False) for n, v in row.items() if isinstance(v, list)}
            writers[0].writerow(row | lists)

    return write
