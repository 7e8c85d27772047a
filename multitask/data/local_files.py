"""The rows of local CSV, TSV and JSON files as a dataset that is cached as an Arrow file.

`datasets` and pandas guess a column's type from its first rows: a text such as 0007 or 2020-01-01 becomes a number or
a date, and a file ends a run when a later row does not fit. Here a type is the narrowest that holds all values of a
column, and a text stays a text. Only the columns that a task reads are read.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets.config
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable
from tqdm import tqdm

from ..errors import UserError, hint
from ..utils import partial_file
from .columns import label_text, value_at
from .rows_in_files import Row, read_rows

VERSION = 1  # of the cached files; increase it when the same file would give other rows


class Kind(NamedTuple):
    """The type of a column's values.

    Args:
        name: null, bool, int, float, text, list or mapping.
        items: of a list.
        fields: of a mapping.
    """

    name: str = "null"
    items: "Kind | None" = None
    fields: "dict[str, Kind] | None" = None


NULL, TEXT = Kind(), Kind("text")
SCALARS = ("bool", "int", "float", "text")
SHOWN_AFTER = 3  # seconds
ROWS_AT_ONCE = 10_000  # that are written


class Conflict(Exception):
    """Two values that no type holds together; the names of their types."""


def read_files(files: Sequence[str], kind: str, columns: Mapping[str, str], key: str, split: str) -> Dataset:
    """The rows of some files, one behind the other.

    Args:
        files: existing files.
        kind: csv or tsv, whose cells are all texts, or the one character that divides their columns; or json.
        columns: columns to read, as dotted paths, each with the setting that names it; in the result each is a column
            of that name.
        key: of the setting that names the files, for error messages.
        split: that the files make up, for error messages.

    Raises:
        UserError: for a file that cannot be read, a row that does not fit the others, or a missing column.
    """
    digest = hashlib.blake2b(repr((VERSION, kind, list(columns))).encode(), digest_size=16)
    for file in files:
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "blake2b").digest())
    name = digest.hexdigest()
    path = Path(datasets.config.HF_DATASETS_CACHE) / "multitask" / f"{name}.arrow"
    if not path.exists():
        kinds = dict.fromkeys(columns, TEXT) if kind != "json" else _kinds(files, kind, columns, key)
        unseen = [column for column, of_column in kinds.items() if of_column in (NULL, TEXT)]
        known = _known(files, kind, unseen, key) if unseen else {}
        for column in unseen:
            if column not in known:
                text = f"{columns[column]}: {split} has no column '{column}'{hint(column, known, 'columns')}"
                raise UserError(text.replace("\t", "\\t") + _other_separator(kind, known))
        with tqdm(desc=f"Reading {split}", unit="row", delay=SHOWN_AFTER) as bar:
            _write(path, kinds, _rows(files, kind, kinds, key), bar.update)
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=name)


def _other_separator(kind: str, known: Iterable[str]) -> str:
    """A hint for a file whose head line was not divided."""
    head = "".join(known)
    if kind == "csv" and "\t" in head:
        return "; its columns are divided by tabs: dataset: tsv"
    return "; its columns are divided by semicolons, where dataset: csv takes commas" if ";" in head else ""


def _numbered(files: Sequence[str], kind: str, key: str) -> Iterator[tuple[str, int, Row]]:
    """Every row after its file and its number there."""
    for file in files:
        try:
            for number, row in enumerate(read_rows(file, kind=kind)):
                if isinstance(row, UserError):
                    raise UserError(f"{file} row {number} {row}")
                yield file, number, row
        except UserError as error:
            raise UserError(f"{key}: {error}") from error


def _kinds(files: Sequence[str], kind: str, columns: Iterable[str], key: str) -> dict[str, Kind]:
    """The type of each column over all rows."""
    kinds = dict.fromkeys(columns, NULL)
    for file, number, row in _numbered(files, kind, key):
        for column in kinds:
            value = row[column] if column in row else value_at(row, column)
            try:
                kinds[column] = widened(kinds[column], value)
            except Conflict as conflict:
                before, here = conflict.args
                at, message = f"{key}: {file} row {number}", f"holds {here}, the rows before it hold {before}"
                raise UserError(f"{at}: column '{column}' {message}") from None
            except UnicodeEncodeError:
                at = f"{key}: {file} row {number}"
                raise UserError(f"{at}: column '{column}' holds half a character, which is no Unicode") from None
    return kinds


def _known(files: Sequence[str], kind: str, columns: Sequence[str], key: str) -> dict[str, None]:
    """The paths of columns in the rows, up to the row in which the last of some columns was seen."""
    known: dict[str, None] = {}
    for _, _, row in _numbered(files, kind, key):
        known |= dict.fromkeys(row if kind != "json" else _paths(row))
        if all(column in known for column in columns):
            break
    if not known:
        raise UserError(f"{key}: {', '.join(files)} has no rows")
    return known


def _paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields of a row."""
    if isinstance(value, list):
        for item in value[:1]:
            yield from _paths(item, prefix)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield f"{prefix}{name}"
            yield from _paths(item, f"{prefix}{name}.")


def widened(kind: Kind, value: Any) -> Kind:
    """The narrowest type that holds a value and those of a type.

    Raises:
        Conflict: for a list, a mapping and a text or number together.
        UnicodeEncodeError: for a text with half a surrogate pair.
    """
    if value is None:
        return kind
    if isinstance(value, list):
        items = kind.items or NULL
        for item in value:
            items = widened(items, item)
        found = Kind("list", items=items)
    elif isinstance(value, dict):
        fields = dict(kind.fields or {})
        for name, item in value.items():
            fields[name] = widened(fields.get(name, NULL), item)
        found = Kind("mapping", fields=fields)
    else:
        found = Kind(_scalar(value))
    if kind.name in ("null", found.name):
        return found
    if kind.name in SCALARS and found.name in SCALARS:
        return Kind("float" if {kind.name, found.name} == {"int", "float"} else "text")
    raise Conflict(f"a {kind.name}", f"a {found.name}")


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        value.encode()
        return "text"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "text"  # Arrow has no such number
    return {bool: "bool", int: "int", float: "float"}.get(type(value), "text")


def _feature(kind: Kind) -> Any:
    if kind.name == "list":
        return List(_feature(kind.items or NULL))
    if kind.name == "mapping":
        return {name: _feature(of) for name, of in (kind.fields or {}).items()}
    return Value({"bool": "bool", "int": "int64", "float": "float64", "text": "string", "null": "string"}[kind.name])


def _rows(files: Sequence[str], kind: str, kinds: dict[str, Kind], key: str) -> Iterator[tuple]:
    """The values of each row's columns."""
    for _, _, row in _numbered(files, kind, key):
        if kind != "json":
            yield tuple(map(row.get, kinds))
        else:
            yield tuple(_converted(value_at(row, column), of) for column, of in kinds.items())


def _converted(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    if kind.name == "list":
        return [_converted(item, kind.items or NULL) for item in value]
    if kind.name == "mapping":
        return {name: _converted(value.get(name), of) for name, of in (kind.fields or {}).items()}
    return label_text(value) if kind.name == "text" and not isinstance(value, str) else value


def _write(path: Path, kinds: dict[str, Kind], rows: Iterator[tuple], written: Callable[[int], object]) -> None:
    """Writes rows; `written` is called with the number of each batch's."""
    features = Features({column: _feature(kind) for column, kind in kinds.items()})
    try:
        with partial_file(path) as partial, ArrowWriter(path=str(partial), features=features) as writer:
            while batch := list(islice(rows, ROWS_AT_ONCE)):
                writer.write_batch(dict(zip(kinds, map(list, zip(*batch, strict=True)), strict=True)))
                written(len(batch))
            writer.finalize()
    except OSError as error:
        raise UserError(
            f"the cache of `datasets` cannot be written: {path.parent}: {error.strerror}; HF_DATASETS_CACHE "
            f"names another"
        ) from error
