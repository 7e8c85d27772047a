"""Rows in CSV, TSV, JSON and Parquet files, read the same way for training, evaluation and prediction.

A text in a file is that text: neither pandas nor Arrow may guess a number or a date from it.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from pyarrow import parquet

from ..errors import UserError, first_line

csv.field_size_limit(sys.maxsize)  # a field may be longer than 131,072 characters

Row = dict[str, Any]

SEPARATORS = {"csv": ",", "tsv": "\t"}


def read_rows(path: str, kind: str = "") -> Iterator[Row | UserError]:
    """Yields the rows of a file in order, read lazily; in place of a row that cannot be read, its `UserError`.

    Args:
        path: a file of JSON Lines, a JSON array of objects, CSV or TSV with a head line, or Parquet.
        kind: csv, tsv, json or parquet, or the one character that divides its columns; by default that of the file's
            ending.

    Raises:
        UserError: if the file as a whole cannot be read; the message names it.
    """
    kind = kind or {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}.get(Path(path).suffix, "json")
    try:
        if kind == "parquet":
            yield from _parquet_rows(path)
        else:
            with open(path, encoding="utf-8-sig", newline=None if kind == "json" else "") as file:
                if kind == "json":
                    yield from json_rows(file)
                else:
                    yield from _separated_rows(file, SEPARATORS.get(kind, kind))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}; convert it to UTF-8, as with iconv") from error
    except (OSError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def _parquet_rows(path: str) -> Iterator[Row]:
    table = parquet.ParquetFile(path)
    for batch in table.iter_batches(batch_size=1024) if table.metadata.num_rows else ():
        yield from batch.to_pylist()


def json_rows(file: TextIO) -> Iterator[Row | UserError]:
    """The rows of JSON Lines (empty lines are skipped) or of a JSON array of objects."""
    start = file.read(1) if file.seekable() else ""
    while start and start.isspace():
        start = file.read(1)
    if file.seekable():
        file.seek(0)
    if start == "[":
        try:
            lines = json.load(file)
        except ValueError as error:
            raise UserError(f"{file.name} is not JSON: {first_line(error)}") from error
        yield from (row if isinstance(row, dict) else _no_object(str(row)) for row in lines)
        return
    for line in file:
        if line.strip():
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else _no_object(line)
            except ValueError as error:
                yield UserError(f"is not JSON: {first_line(error)}")


def _no_object(text: str) -> UserError:
    return UserError(f"holds {text.strip()[:40]!r}, not one JSON object")


def _separated_rows(file: TextIO, separator: str) -> Iterator[Row | UserError]:
    lines = csv.reader(file, delimiter=separator, strict=True)
    head = next(lines, [])
    for fields in lines:
        if len(fields) == len(head):
            yield dict(zip(head, fields, strict=True))
        elif fields:
            yield UserError(f"has {len(fields)} fields, the head line {len(head)}")
