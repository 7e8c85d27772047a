"""Streams rows to predict from, and predictions to, JSON Lines, CSV and Parquet files."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ..data.remote_files import is_remote, local_copies
from ..data.rows_in_files import json_rows, read_rows
from ..errors import UserError, hint
from ..tasks.base import TASK_TYPES
from ..utils import flatten

SUFFIXES = (".jsonl", ".csv", ".parquet")
INPUT_SUFFIXES = (*SUFFIXES, ".json", ".tsv")
STDIO = "-"


def check_paths(source: str, target: str) -> None:
    """Rejects an input that cannot be read and an output that cannot be written.

    Raises:
        UserError: naming the option and what was found.
    """
    for option, name, known in (("--input", source, INPUT_SUFFIXES), ("--output", target, SUFFIXES)):
        if name != STDIO and Path(name).suffix not in known:
            raise UserError(f"{option}: {name} is of no known kind{hint(Path(name).suffix, known, 'endings')}")
    if source != STDIO and not is_remote(source) and not Path(source).is_file():
        raise UserError(f"--input: there is no file {source} (seen from {Path.cwd()})")
    if target == STDIO:
        return
    if not Path(target).parent.is_dir():
        raise UserError(f"--output: there is no folder {Path(target).parent} (seen from {Path.cwd()})")
    if Path(target).is_dir():
        raise UserError(f"--output: {target} is a folder")
    for written in (target, f"{target}.partial", bad_rows_file(target)):
        if Path(written).exists() and Path(source).exists() and Path(written).samefile(source):
            raise UserError(f"--output: {target} would replace the input {source}")


def bad_rows_file(target: str) -> str:
    """Path of the file with the rows that could not be predicted."""
    return f"{'predictions' if target == STDIO else target}.bad.jsonl"


def read_input(source: str) -> Iterator[dict[str, Any] | UserError]:
    """The rows of `--input`: a file here or in Google Cloud Storage, or JSON Lines on stdin; see `read_rows`.

    Raises:
        UserError: if the file as a whole cannot be read.
    """
    if source == STDIO:
        yield from json_rows(sys.stdin)
        return
    try:
        yield from read_rows(_only_copy(source) if is_remote(source) else source)
    except UserError as error:
        raise UserError(f"--input: {error}") from error


def _only_copy(url: str) -> str:
    copies = local_copies(url)
    if len(copies) > 1:
        raise UserError(f"{url} stands for {len(copies)} objects; give one")
    return copies[0]


@contextmanager
def prediction_file(target: str) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yields a function that appends rows to a file, which is named `TARGET.partial` until it is complete.

    JSON Lines keep nested rows; CSV and Parquet have one column per leaf (`rte.label`), CSV with lists as JSON. The
    row's own fields are texts there, lists and mappings as JSON; those that the first row lacks are left out.
    """
    partial = Path(f"{target}.partial")
    if target == STDIO:
        yield _json_writer(sys.stdout)
    elif target.endswith(".parquet"):
        _create(partial).close()
        writers: list[parquet.ParquetWriter] = []

        def write_parquet(rows: list[dict[str, Any]]) -> None:
            flat = [flatten(with_fields_as_texts(row)) for row in rows]
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
    if name.startswith("fields."):
        return pa.string()
    if ".probabilities." in name:
        return pa.float64()
    types = {field: kind for task_type in TASK_TYPES.values() for field, kind in task_type.answer_types.items()}
    return types.get(name.rpartition(".")[2], pa.float64())


def with_fields_as_texts(row: dict[str, Any]) -> dict[str, Any]:
    """A predicted row whose own fields are texts, for formats with columns."""
    texts = {
        name: value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in row.get("fields", {}).items()
    }
    return row | ({"fields": texts} if texts else {})


def _json_writer(file: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _csv_writer(file: Any) -> Callable[[list[dict[str, Any]]], None]:
    writers: list[csv.DictWriter] = []

    def write(rows: list[dict[str, Any]]) -> None:
        for row in map(flatten, map(with_fields_as_texts, rows)):
            if not writers:
                writers.append(csv.DictWriter(file, list(row), extrasaction="ignore"))
                writers[0].writeheader()
            lists = {n: json.dumps(v, ensure_ascii=False) for n, v in row.items() if isinstance(v, list)}
            writers[0].writerow(row | lists)

    return write
