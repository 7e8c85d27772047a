"""Where a task's rows are: a dataset on the hub or in a folder that mirrors it, or local files."""

import os
from glob import glob
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from .config import FILE_FORMATS, TaskConfig
from .errors import UserError, first_line, hint
from .hub import find_in_mirror, go_offline_if_unreachable


def load_splits(name: str, config: TaskConfig, data_root: str | None) -> dict[str, Dataset]:
    """The rows of a task's `train` and, where there is one, `validation` split, with the columns that it reads.

    Args:
        name: the task's, for error messages.
        config: the task's.
        data_root: folder that mirrors hub datasets; what is found there is read from there.

    Raises:
        UserError: for a file, dataset, subset, split or column that is not there, naming those that are.
    """
    mirrored = find_in_mirror(config.dataset, data_root, "data_root")
    source = mirrored or FILE_FORMATS.get(config.dataset, config.dataset)
    if not Path(source).is_dir() and config.dataset not in FILE_FORMATS:
        go_offline_if_unreachable()
    key = f"tasks.{name}"
    files = config.data_files or {}
    if config.dataset in FILE_FORMATS:
        for split, patterns in files.items():
            _check_files(f"{key}.data_files.{split}", [patterns] if isinstance(patterns, str) else patterns)
    try:
        if config.dataset in FILE_FORMATS:  # split by split, as one may have columns that another has not
            datasets = {s: load_dataset(source, data_files={s: of_split}, split=s) for s, of_split in files.items()}
        else:
            datasets = load_dataset(source, config.subset, data_files=config.data_files)
    except DatasetNotFoundError as error:
        raise UserError(f"{key}.dataset: {first_line(error)}{_searched(config.dataset, data_root)}") from error
    except ConnectionError as error:
        found = f"{key}.dataset: the hub cannot be reached for '{config.dataset}'"
        raise UserError(found + _searched(config.dataset, data_root)) from error
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise UserError(f"{key}: {config.data_files or source} cannot be read: {first_line(cause)}") from error
    except (ValueError, FileNotFoundError) as error:
        where = "subset" if "Config" in str(error) else "dataset"
        raise UserError(f"{key}.{where}: {config.subset or source}: {first_line(error)}") from error

    splits = {}
    for role, wanted in (("train", config.train_split), ("validation", config.validation_split)):
        if wanted in datasets:
            splits[role] = datasets[wanted]
        elif role == "train" or wanted not in (None, "validation"):
            raise UserError(f"{key}.{role}_split: {source} has no split '{wanted}'{hint(wanted, datasets, 'splits')}")
    if not len(splits["train"]):
        raise UserError(f"{key}: split '{config.train_split}' of {source} has no rows")
    if "validation" in splits and not len(splits["validation"]):
        del splits["validation"]
    for role, dataset in splits.items():
        _check_columns(key, config.train_split if role == "train" else str(config.validation_split), dataset, config)
    return splits


def _check_files(key: str, patterns: list[str]) -> None:
    for pattern in patterns:
        found = glob(pattern, recursive=True)
        if "://" not in pattern and not found:
            raise UserError(f"{key}: there is no file {pattern} (seen from {Path.cwd()})")
        for file in found:
            if not os.path.getsize(file):
                raise UserError(f"{key}: {file} has no rows")


def _searched(dataset: str, data_root: str | None) -> str:
    if data_root is None:
        return "; --data_root DIR reads it from a folder"
    there = [f"{path.parent.name}/{path.name}" for path in Path(data_root).glob("*/*") if path.is_dir()]
    return f", and it is not in data_root {data_root}{hint(dataset, there, 'there')}"


def _check_columns(key: str, split: str, dataset: Dataset, config: TaskConfig) -> None:
    known = _paths(dataset.features)
    choices = [config.choices] if isinstance(config.choices, str) else config.choices or []
    wanted = [("inputs", c) for c in config.inputs] + [("label", config.label)] + [("choices", c) for c in choices]
    for option, column in wanted + ([("choice_labels", config.choice_labels)] if config.choice_labels else []):
        if column not in known:
            raise UserError(f"{key}.{option}: {split} has no column '{column}'{hint(column, known, 'columns')}")


def _paths(features: Any) -> list[str]:
    """Dotted paths of all columns, the inner ones of nested columns included."""
    paths = []
    for name, feature in features.items():
        inner = feature
        while not isinstance(inner, dict) and hasattr(inner, "feature"):
            inner = inner.feature
        inner = inner[0] if isinstance(inner, list) else inner
        paths += [name] + ([f"{name}.{path}" for path in _paths(inner)] if isinstance(inner, dict) else [])
    return paths
