"""Sources of a task's rows: a hub dataset, a local mirror of the hub, or files."""

import os
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import datasets.config
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import constants

from ..config.schema import FILE_FORMATS, TaskConfig
from ..errors import UserError, first_line, hint

# Reading a local file is counted by a request to a server; a quick start without a network should not wait for it.
datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False


def load_splits(name: str, config: TaskConfig, data_root: str | None) -> dict[str, Dataset]:
    """Loads the `train` and, if present, `validation` rows of a task, with the columns that it reads.

    Args:
        name: name of the task, for error messages.
        config: configuration of the task.
        data_root: local mirror of hub datasets, used if it has the dataset.

    Raises:
        UserError: for a missing file, dataset, subset, split or column, naming those that exist.
    """
    key = f"tasks.{name}"
    is_local = config.dataset in FILE_FORMATS
    mirrored = None if is_local else find_in_mirror(config.dataset, data_root, "data_root")
    source = FILE_FORMATS.get(config.dataset) or mirrored or config.dataset
    if not is_local and not Path(source).is_dir():
        if source.startswith((".", "/", "~")):
            raise UserError(f"{key}.dataset: there is no folder {source} (seen from {Path.cwd()})")
        go_offline_if_unreachable()
    files = config.data_files or {}
    for split, patterns in files.items() if is_local else ():
        _check_files(f"{key}.data_files.{split}", [patterns] if isinstance(patterns, str) else patterns)
    # What pandas would take for a missing value, such as "NA" or "None", is a text like any other.
    options: dict[str, Any] = {"keep_default_na": False} if source == "csv" else {}
    try:
        if is_local:  # split by split, as one may have columns that another has not
            found = {s: load_dataset(source, data_files={s: f}, split=s, **options) for s, f in files.items()}
        else:
            found = load_dataset(source, config.subset, data_files=config.data_files)
    except (DatasetNotFoundError, ConnectionError) as error:
        reason = "the hub cannot be reached for" if isinstance(error, ConnectionError) else "the hub does not have"
        raise UserError(f"{key}.dataset: {reason} '{config.dataset}'{_searched(config.dataset, data_root)}") from error
    except DatasetGenerationError as error:
        raise UserError(f"{key}: {files or source} cannot be read: {first_line(error.__cause__ or error)}") from error
    except (ValueError, OSError) as error:
        if "corresponds to no data" in str(error):
            raise UserError(f"{key}.data_files: one of {files} has no rows") from error
        where = "subset" if "config" in str(error).lower() else "dataset"
        reason = str(error).split("Example of usage")[0]
        raise UserError(f"{key}.{where}: {config.subset or source}: {reason}") from error

    splits = {}
    for role, wanted in (("train", config.train_split), ("validation", config.validation_split)):
        if wanted in found:
            splits[role] = found[wanted]
        elif role == "train" or wanted not in (None, "validation"):
            raise UserError(f"{key}.{role}_split: {source} has no split '{wanted}'{hint(wanted, found, 'splits')}")
    if not len(splits["train"]):
        raise UserError(f"{key}: split '{config.train_split}' of {source} has no rows")
    if "validation" in splits and not len(splits["validation"]):
        del splits["validation"]
    for role, dataset in splits.items():
        _check_columns(key, config.train_split if role == "train" else str(config.validation_split), dataset, config)
    return splits


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


def _check_columns(key: str, split: str, dataset: Dataset, config: TaskConfig) -> None:
    known = _paths(dataset.features)
    choices = [config.choices] if isinstance(config.choices, str) else config.choices or []
    wanted = [("inputs", c) for c in config.inputs] + [("label", config.label)] + [("choices", c) for c in choices]
    for option, column in wanted + ([("choice_labels", config.choice_labels)] if config.choice_labels else []):
        if column not in known:
            raise UserError(f"{key}.{option}: {split} has no column '{column}'{hint(column, known, 'columns')}")


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
