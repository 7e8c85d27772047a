"""Sources of a task's rows: a hub dataset, a local mirror of the hub, or files."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from datasets import (
    ClassLabel,
    Dataset,
    DatasetBuilder,
    DownloadManager,
    Features,
    Value,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from huggingface_hub import constants

from ..config.schema import FILE_FORMATS, TaskConfig
from ..errors import UserError, first_line, hint
from ..utils import partial_file, stable_seed
from .local_files import read_files
from .remote_files import is_remote, local_copies

# Settings of a folder's files that do not change how they are read, or that `_plain_format` looks at.
WHERE_AND_WHAT = ("name", "version", "data_dir", "data_files", "description", "sep", "delimiter")

TEXTS = (Value("string"), Value("large_string"))

# Reading a local file is counted by a request to a server; a quick start without a network should not wait for it.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
# The hub's viewer has converted each data set to Parquet with types that it guessed; what an author declares counts.
datasets.config.USE_PARQUET_EXPORT = False


def load_splits(
    name: str,
    config: TaskConfig,
    data_root: str | None,
    is_trained: bool = True,
    readers: Mapping[str, TaskConfig] | None = None,
) -> dict[str, Dataset]:
    """Loads the `train` and, if present, `validation` rows of a task, with the columns that it reads.

    Args:
        name: name of the task, for error messages.
        config: configuration of the task.
        data_root: local mirror of hub datasets, used if it has the dataset.
        is_trained: false for validation rows alone; those to train on may then be missing.
        readers: all tasks that read these rows, if they are several; what one of them reads is loaded for all.

    Raises:
        UserError: for a missing file, dataset, subset, split or column, naming those that exist.
    """
    key = f"tasks.{name}"
    if not is_trained:
        files_of = config.data_files and {s: f for s, f in config.data_files.items() if s == config.validation_split}
        config = dataclasses.replace(config, data_files=files_of or config.data_files)
    is_local = config.dataset in FILE_FORMATS
    mirrored = None if is_local else find_in_mirror(config.dataset, data_root, "data_root")
    source = FILE_FORMATS.get(config.dataset) or mirrored or config.dataset
    if not is_local and not Path(source).is_dir():
        if source.startswith((".", "/", "~")):
            raise UserError(f"{key}.dataset: there is no folder {source} (seen from {Path.cwd()})")
        go_offline_if_unreachable()
    files = _local_files(key, config) if is_local else {}
    columns = _columns(key, config)
    for reader, of_reader in (readers or {}).items():
        columns = _columns(f"tasks.{reader}", of_reader) | columns
    columns = dict(sorted(columns.items()))  # the same for all readers, and so is what is cached
    try:
        found: Mapping[Any, Dataset]
        if source == "parquet":  # split by split, as one may have columns that another has not
            found = {s: _read_parquet(files[s], s, columns) for s in files}
        elif is_local:
            found = {s: read_files(files[s], source, columns, f"{key}.data_files.{s}", s) for s in files}
        elif Path(source).is_dir():
            found = _read_folder(source, config, columns, key)
        else:
            found = _read_hub(source, config, columns, key)
    except (DatasetNotFoundError, ConnectionError) as error:
        reason = "the hub cannot be reached for" if isinstance(error, ConnectionError) else "the hub does not have"
        raise UserError(f"{key}.dataset: {reason} '{config.dataset}'{_searched(config.dataset, data_root)}") from error
    except DatasetGenerationError as error:
        raise UserError(
            f"{key}: {files or config.data_files or source} cannot be read: {first_line(error.__cause__ or error)}"
        ) from error
    except (ValueError, OSError) as error:
        if "corresponds to no data" in str(error):
            raise UserError(f"{key}.data_files: one of {files} has no rows") from error
        where = "subset" if "config" in str(error).lower() else "dataset"
        reason = str(error).split("Example of usage")[0]
        raise UserError(f"{key}.{where}: {config.subset or source}: {reason}") from error

    splits = {}
    for role, wanted in (("train", config.train_split), ("validation", config.validation_split)):
        if role == "train" and not is_trained:
            continue
        if wanted in found:
            splits[role] = found[str(wanted)]
        elif role == "train" or wanted not in (None, "validation"):
            raise UserError(f"{key}.{role}_split: {source} has no split '{wanted}'{hint(wanted, found, 'splits')}")
    if is_trained and not len(splits["train"]):
        raise UserError(f"{key}: split '{config.train_split}' of {source} has no rows")
    if "validation" in splits and not len(splits["validation"]):
        del splits["validation"]
    for role, dataset in splits.items():
        _check_columns(config.train_split if role == "train" else str(config.validation_split), dataset, columns)
    joined = {of.label_column: of.label for of in (config, *(readers or {}).values()) if isinstance(of.label, list)}
    for name, parts in joined.items():
        splits = {role: _with_joined(dataset, name, parts) for role, dataset in splits.items()}
    return splits


def _with_joined(dataset: Dataset, name: str, columns: Sequence[str]) -> Dataset:
    """Adds a column with a list of the values of others; null where all of them are null or empty."""
    parts = [dataset.with_format("arrow")[column].combine_chunks() for column in columns]
    if any(not pa.types.is_floating(part.type) and not pa.types.is_integer(part.type) for part in parts):
        parts = [part.cast(pa.string()) for part in parts]
    else:
        parts = [part.cast(pa.float64()) for part in parts]
    is_there = np.stack([np.asarray(pc.is_valid(part)) for part in parts], axis=1).any(axis=1)
    if pa.types.is_string(parts[0].type):
        is_empty = [np.asarray(pc.fill_null(pc.equal(part, ""), True)) for part in parts]
        is_there = ~np.stack(is_empty, axis=1).all(axis=1)
    row_by_row = np.arange(len(parts) * len(dataset)).reshape(len(parts), -1).T.ravel()
    values = pa.concat_arrays(parts).take(pa.array(row_by_row))
    offsets = pa.array(np.arange(len(dataset) + 1) * len(parts), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, values, mask=pa.array(~is_there))
    return dataset.add_column(name, lists, new_fingerprint=f"{stable_seed(dataset._fingerprint, name):016x}")


def _local_files(key: str, config: TaskConfig) -> dict[str, list[str]]:
    """The files of each split on this machine; those in Google Cloud Storage are copied here."""
    files: dict[str, list[str]] = {}
    for split, names in (config.data_files or {}).items():
        option, names = f"{key}.data_files.{split}", [names] if isinstance(names, str) else names
        files[split] = []
        for name in names:
            try:
                files[split] += local_copies(name) if is_remote(name) else _matching(os.path.expanduser(name))
            except UserError as error:
                raise UserError(f"{option}: {error}") from error
        _check_files(option, files[split])
    return files


def _matching(pattern: str) -> list[str]:
    """The files of a pattern such as `part-*.csv` in the order of their names; a pattern that finds none as it is."""
    return [pattern] if Path(pattern).exists() else sorted(glob(pattern, recursive=True)) or [pattern]


def _check_files(key: str, patterns: list[str]) -> None:
    if not patterns:
        raise UserError(f"{key}: there is no file in the list")
    for pattern in patterns:
        found = glob(pattern, recursive=True)
        if "://" not in pattern and not found and not Path(pattern).exists():
            raise UserError(f"{key}: there is no file {pattern} (seen from {Path.cwd()})")
        for file in map(Path, found):
            if file.is_dir():
                raise UserError(f"{key}: {file} is a folder, not a file")
            if not os.access(file, os.R_OK):
                raise UserError(f"{key}: {file} cannot be read: permission denied")
            if not file.stat().st_size:
                raise UserError(f"{key}: {file} has no rows")


def _searched(dataset: str, data_root: str | None) -> str:
    if "/" not in dataset:
        return hint(dataset, FILE_FORMATS, "formats of local files")
    if data_root is None:
        return "; --data_root DIR reads it from a folder"
    there = [f"{path.parent.name}/{path.name}" for path in Path(data_root).glob("*/*") if path.is_dir()]
    return f", and it is not in data_root {data_root}{hint(dataset, there, 'there')}"


def _columns(key: str, config: TaskConfig) -> dict[str, str]:
    """The columns that a task reads, each with the setting that names it."""
    choices = [config.choices] if isinstance(config.choices, str) else config.choices or []
    labels = [config.label] if isinstance(config.label, str) else config.label
    wanted = dict.fromkeys([*config.inputs], "inputs") | dict.fromkeys(labels, "label")
    wanted |= dict.fromkeys(choices, "choices")
    wanted |= {config.choice_labels: "choice_labels"} if config.choice_labels else {}
    return {column: f"{key}.{option}" for column, option in wanted.items()}


def _read_parquet(files: list[str], split: str, columns: Mapping[str, str]) -> Dataset:
    there = pyarrow.parquet.read_schema(files[0]).names if len(files) == 1 else []
    read = [name for name in there if name in columns or name in {column.split(".")[0] for column in columns}]
    return load_dataset("parquet", data_files={split: files}, split=split, columns=read or None)


class _PlainFiles(NamedTuple):
    """Files of a dataset whose cells are read as they stand.

    Args:
        kind: of the files, as `read_files` takes it.
        files: of each split, on this machine; None for a split that is not read.
        classes: names of the classes of columns that declare them.
    """

    kind: str
    files: dict[str, list[str] | None]
    classes: dict[str, list[str]]


def _read_hub(name: str, config: TaskConfig, columns: Mapping[str, str], key: str) -> Mapping[str, Dataset]:
    """The splits of a hub data set; without a network, those of an earlier run."""
    asked = (name, config.subset, config.data_files, config.train_split, config.validation_split, sorted(columns))
    memo = Path(datasets.config.HF_DATASETS_CACHE) / "multitask" / f"{stable_seed(*asked):016x}.json"
    if constants.is_offline_mode() and memo.exists():
        earlier = _PlainFiles(**json.loads(memo.read_text(encoding="utf-8")))
        if all(Path(file).exists() for files in earlier.files.values() for file in files or ()):
            return _read_plain(earlier, columns, key)
    plain = _plain_files(load_dataset_builder(name, config.subset, data_files=config.data_files), config, columns)
    if plain is None:  # `datasets` keeps those in its own cache
        return load_dataset(name, config.subset, data_files=config.data_files)
    found = _read_plain(plain, columns, key)
    with partial_file(memo) as partial:
        partial.write_text(json.dumps(plain._asdict()), encoding="utf-8")
    return found


def _read_folder(folder: str, config: TaskConfig, columns: Mapping[str, str], key: str) -> Mapping[str, Dataset]:
    """The splits of a folder of files."""
    plain = _plain_files(load_dataset_builder(folder, config.subset, data_files=config.data_files), config, columns)
    if plain is None:
        return load_dataset(folder, config.subset, data_files=config.data_files)
    return _read_plain(plain, columns, key)


def _plain_files(builder: DatasetBuilder, config: TaskConfig, columns: Iterable[str]) -> _PlainFiles | None:
    """The files of a dataset of CSV, TSV or JSON, downloaded; None where it declares types that are not text."""
    kind, declared = _plain_format(builder), builder.info.features or {}
    types = {column: declared[column] for column in columns if column in declared}
    if kind is None or not all(type_ in TEXTS or isinstance(type_, ClassLabel) for type_ in types.values()):
        return None
    files: dict[str, list[str] | None] = {str(split): None for split in builder.config.data_files}
    for split in (split for split in files if split in (config.train_split, config.validation_split)):
        files[split] = list(map(str, DownloadManager().download_and_extract(list(builder.config.data_files[split]))))
    return _PlainFiles(kind, files, {c: type_.names for c, type_ in types.items() if isinstance(type_, ClassLabel)})


def _read_plain(plain: _PlainFiles, columns: Mapping[str, str], key: str) -> dict[str, Dataset]:
    """The splits, of which those that are not read have no rows."""
    found = {split: Dataset.from_dict({}) for split in plain.files}
    for split, files in plain.files.items():
        if files is not None:
            found[split] = read_files(files, plain.kind, columns, f"{key}.dataset", split)
            for column, names in plain.classes.items():
                classes = ClassLabel(names=names)
                features = Features({**found[split].features, column: classes})
                arguments = {"column": column, "classes": classes}
                found[split] = found[split].map(_as_classes, batched=True, features=features, fn_kwargs=arguments)
    return found


def _as_classes(rows: dict[str, list], column: str, classes: ClassLabel) -> dict[str, list]:
    """The numbers of classes, which may stand in the files as numbers or names; an empty cell has none."""
    named = [None if cell == "" else cell for cell in rows[column]]
    return {column: [classes.str2int(cell) if isinstance(cell, str) else cell for cell in named]}


def _plain_format(builder: DatasetBuilder) -> str | None:
    """The kind of a dataset's files, as `read_files` takes it, if its README has no settings but their separator."""
    if not isinstance(builder, (Csv, Json)):
        return None
    settings = {f.name: f.default for f in dataclasses.fields(builder.config) if f.name not in WHERE_AND_WHAT}
    if any(getattr(builder.config, name) != default for name, default in settings.items()):
        return None
    if isinstance(builder, Json):
        return "json"
    separator = builder.config.delimiter or builder.config.sep  # two names of one setting
    return {",": "csv", "\t": "tsv"}.get(separator, separator if len(separator) == 1 else None)


def _check_columns(split: str, dataset: Dataset, columns: Mapping[str, str]) -> None:
    known = _paths(dataset.features)
    for column, option in columns.items():
        if column not in known:
            raise UserError(f"{option}: {split} has no column '{column}'{hint(column, known, 'columns')}")


def _paths(features: Any) -> list[str]:
    """Dotted paths of all columns, including nested ones."""
    paths = []
    for name, feature in features.items():
        inner = feature
        while not isinstance(inner, dict) and hasattr(inner, "feature"):
            inner = inner.feature
        inner = inner[0] if isinstance(inner, list) else inner
        paths += [name] + ([f"{name}.{path}" for path in _paths(inner)] if isinstance(inner, dict) else [])
    return paths


def find_in_mirror(name: str, root: str | None, option: str) -> str | None:
    """The folder of `name` in a local mirror of the hub; None if it has none.

    Raises:
        UserError: if `root` is not a folder; `option` names the setting.
    """
    if root and not Path(root).is_dir():
        raise UserError(f"{option}: there is no folder {root} (seen from {Path.cwd()})")
    folder = Path(root) / name if root else None
    return str(folder) if folder is not None and folder.is_dir() else None


@cache
def go_offline_if_unreachable() -> None:
    """Asks the hub once; without an answer, switches the Hugging Face libraries to their caches.

    Otherwise they would retry each request for half a minute.
    """
    if constants.is_offline_mode():
        return
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5)
    except HTTPError:
        return  # an answer all the same
    except OSError:
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
