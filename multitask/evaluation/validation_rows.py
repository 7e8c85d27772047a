"""The predictions of the last evaluation, row by row, in `validation.parquet`; runs are compared by them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from ..errors import UserError, first_line
from ..tasks.load import TaskData

NAME = "validation.parquet"


class RowPredictions(NamedTuple):
    """A task's predictions and references in the form that its metrics take.

    Args:
        type: name of the task's type.
        labels: names of the labels.
        metrics: names of the metrics that the run reports.
        predictions: one for each validation row.
        references: in the same order.
    """

    type: str
    labels: list[str]
    metrics: list[str]
    predictions: list[Any]
    references: list[Any]


def of_task(task: TaskData, predictions: Sequence | NDArray, references: Sequence | NDArray) -> RowPredictions:
    """The predictions of an evaluation."""
    values = (v.tolist() if isinstance(v, np.ndarray) else list(v) for v in (predictions, references))
    return RowPredictions(task.type.name, list(task.labels), list(task.metrics), *values)


def write_rows(path: Path, tasks: Mapping[str, RowPredictions]) -> None:
    """Replaces the file atomically: one line per row, with `prediction` and `reference` as JSON."""
    columns: dict[str, list] = {"task": [], "row": [], "prediction": [], "reference": []}
    for name, of in tasks.items():
        columns["task"] += [name] * len(of.predictions)
        columns["row"] += range(len(of.predictions))
        columns["prediction"] += map(json.dumps, of.predictions)
        columns["reference"] += map(json.dumps, of.references)
    about = {name: {"type": of.type, "labels": of.labels, "metrics": of.metrics} for name, of in tasks.items()}
    table = pa.table(columns).replace_schema_metadata({"tasks": json.dumps(about)})
    partial = path.with_name(path.name + ".partial")
    parquet.write_table(table, partial)
    partial.replace(path)


def read_rows(path: Path) -> dict[str, RowPredictions]:
    """Reads what `write_rows` wrote.

    Raises:
        UserError: if the file is missing or cannot be read.
    """
    try:
        table = parquet.read_table(path)
        tasks = json.loads((table.schema.metadata or {})[b"tasks"])
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}, which a run writes with its first evaluation") from error
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    found = {name: RowPredictions(**about, predictions=[], references=[]) for name, about in tasks.items()}
    for line in table.to_pylist():
        found[line["task"]].predictions.append(json.loads(line["prediction"]))
        found[line["task"]].references.append(json.loads(line["reference"]))
    return found
