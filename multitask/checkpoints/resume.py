"""Finds the checkpoint a run resumes from, checks it against the configuration, and downloads it if it is remote."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import yaml
from accelerate import Accelerator

from ..config.schema import Config
from ..errors import UserError
from ..tracking.run_directory import changed_setting, open_run_folder, remove_run
from ..training.distributed import from_main_process
from ..training.early_stopping import EarlyStopping
from ..training.state import SavedState
from .format import delete_checkpoint, find_checkpoint
from .manifest import checkpoints_in, step_name, step_of, verify
from .remote import check_access, download_checkpoint, list_checkpoints


class RunData(NamedTuple):
    """What a run reads, as far as a resumed run must find it again.

    Args:
        rows: number of rows by task and split.
        labels: names of the labels by task.
        fingerprints: as of `SavedState`.
    """

    rows: Mapping[str, Mapping[str, int]]
    labels: Mapping[str, Sequence[str]]
    fingerprints: Mapping[str, str]


def open_run(
    folder: Path,
    config: Config,
    data: RunData,
    max_steps: int,
    accelerator: Accelerator,
) -> Path | None:
    """Opens a run's folder and puts the checkpoint to resume from on every machine; returns None for a new run.

    Args:
        folder: the run's folder.
        config: configuration of the run.
        data: what the run reads.
        max_steps: length of the run.
        accelerator: its main process searches and writes for all.

    Raises:
        UserError: as `find_resumable` and `check_access` do, on all processes.
    """
    remote, choice = config.checkpoints.remote, config.training.resume_from_checkpoint
    choice = "never" if config.training.overwrite_output_dir else choice

    def look() -> Path | None:
        if remote:
            check_access(remote)
        if config.training.overwrite_output_dir:
            remove_run(folder)
        found = find_resumable(folder, choice, remote, config, data, max_steps, accelerator.print)
        open_run_folder(folder, config, found)
        return found

    found = from_main_process(accelerator, look)
    if found and remote and accelerator.is_local_main_process and not accelerator.is_main_process:
        try:  # the checkpoint may be only on the disk of the first machine
            verify(found)
        except ValueError:
            found.parent.mkdir(parents=True, exist_ok=True)
            download_checkpoint(remote, step_of(found), found)
    accelerator.wait_for_everyone()
    return found


def find_resumable(
    folder: Path,
    choice: str,
    remote: str | None,
    config: Config,
    data: RunData,
    max_steps: int,
    tell: Callable[[str], None],
) -> Path | None:
    """The checkpoint to resume from, verified and made with this configuration; None starts a new run.

    Args:
        folder: the run's folder; downloads go to its `checkpoints`.
        choice: `auto` for the newest in the run's folder or `remote`, `never`, or a checkpoint: a folder or a URL.
        remote: parent URL of the uploaded checkpoints, if any.
        config: configuration of the run; settings that change its result must not have changed.
        data: what the run reads; must not have changed.
        max_steps: length of the run; the checkpoint must not be beyond it.
        tell: receives a message about each checkpoint used, rejected or removed.

    Raises:
        UserError: if the chosen checkpoint is damaged, or made with settings that change the result, naming the first.
    """
    here = folder / "checkpoints"
    for rest in (path for end in ("partial", "deleted") for path in here.glob(f"step-*.{end}")):
        shutil.rmtree(rest)  # left by a run that was killed
    copies = list_checkpoints(remote) if remote else []
    if choice == "never":
        if copies:  # as the newest, they would be kept instead of this run's
            raise UserError(
                f"checkpoints.remote: {remote} holds checkpoints of an earlier run, up to step {copies[-1]}; a run "
                f"that begins anew needs a place of its own"
            )
        for old in checkpoints_in(folder):
            tell(f"{old} is removed, as this run begins anew")
            delete_checkpoint(old)
        return None
    if choice != "auto":
        try:
            found = _fetch(choice, here) if choice.startswith("gs://") else find_checkpoint(choice)
            verify(found)
        except ValueError as damage:
            raise UserError(f"training.resume_from_checkpoint: {choice} is damaged: {damage}") from damage
        _check_settings(found, config, data, max_steps, "--training.resume_from_checkpoint never")
        if found.parent != here:  # the run has what it needs in its own folder
            here.mkdir(parents=True, exist_ok=True)
            shutil.copytree(found, here / found.name, dirs_exist_ok=True)
            found = here / found.name
        return found
    for step in sorted({step_of(path) for path in checkpoints_in(folder)} | {*copies}, reverse=True):
        found = here / step_name(step)
        try:
            verify(found)
        except ValueError as damage:
            if found.exists():
                aside = found.with_name(f"{found.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                found.rename(aside)
                tell(f"{found} is damaged and set aside as {aside.name}: {str(damage).replace(f'{found}/', '')}")
            try:
                if remote is None or step not in copies:
                    continue
                _check_copy(remote, step, config, data, max_steps)  # before gigabytes are fetched
                here.mkdir(parents=True, exist_ok=True)
                download_checkpoint(remote, step, found)
                tell(f"{found} is fetched from {remote}")
            except ValueError as wrong:
                tell(f"{remote}/{found.name} is damaged: {wrong}")
                continue
        _check_settings(found, config, data, max_steps, "--training.overwrite_output_dir true")
        tell(f"the run has ended with {found}" if step == max_steps else f"going on from {found}")
        return found
    return None


def find_best(
    stopping: EarlyStopping, checkpoint: Path, folder: Path, config: Config, tell: Callable[[str], None]
) -> None:
    """Makes the best checkpoint of a resumed run available locally; if it is lost, resets the best.

    Args:
        stopping: early-stopping state of the run, whose best step is reset if its checkpoint is lost.
        checkpoint: the checkpoint resumed from; the best may be next to it, locally or at the URL it came from.
        folder: the run's folder.
        config: configuration of the run.
        tell: receives a message if the best checkpoint is lost.
    """
    step = stopping.best["step"]
    if step is None:
        return
    best, beside = folder / "checkpoints" / step_name(step), checkpoint.with_name(step_name(step))
    url = config.training.resume_from_checkpoint.rstrip("/")
    places = [place for place in (config.checkpoints.remote, url, url.rpartition("/")[0]) if place]
    fetch: list[Callable[[], object]] = [lambda: None, lambda: shutil.copytree(beside, best)]
    if url and not url.startswith("gs://"):  # a checkpoint of another run, or that run's folder
        fetch += [lambda: shutil.copytree(find_checkpoint(url).with_name(step_name(step)), best)]
    fetch += [partial(download_checkpoint, place, step, best) for place in places if place.startswith("gs://")]
    for attempt in fetch:
        with suppress(OSError, UserError, ValueError):
            attempt()
            verify(best)
            return
    tell(f"{best} is lost, which was the best; the best is chosen among those to come")
    stopping.best = {"step": None}


def _fetch(url: str, here: Path) -> Path:
    """Downloads a checkpoint, or the newest one under a URL, into a folder."""
    place, _, name = url.rstrip("/").rpartition("/")
    if not re.fullmatch(r"step-\d{8,}", name):
        steps = list_checkpoints(url)
        if not steps:
            raise UserError(f"training.resume_from_checkpoint: there is no whole checkpoint in {url}")
        place, name = url, step_name(steps[-1])
    found = here / name
    here.mkdir(parents=True, exist_ok=True)
    download_checkpoint(place, step_of(found), found)
    return found


def _check_copy(remote: str, step: int, config: Config, data: RunData, max_steps: int) -> None:
    """Compares the settings of a checkpoint in a bucket, of which the small files alone are fetched."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / step_name(step)
        download_checkpoint(remote, step, folder, only=("config.yaml", "state.json"))
        advice = "another checkpoints.remote, or null"
        _check_settings(folder, config, data, max_steps, advice, f"{remote}/{folder.name}")


def _check_settings(
    folder: Path,
    config: Config,
    data: RunData,
    max_steps: int,
    advice: str,
    name: str = "",
) -> None:
    """Compares a checkpoint's settings and rows with those of a run.

    Args:
        folder: of the checkpoint.
        config: of the run.
        data: what the run reads.
        max_steps: of the run.
        advice: what makes this configuration a new run.
        name: of the checkpoint, for people; its folder, if empty.

    Raises:
        UserError: naming the first that differs.
    """
    if step_of(folder) > max_steps:
        raise UserError(
            f"training.max_steps: {max_steps:,} steps, but {name or folder} has done {step_of(folder):,} already; a "
            f"run can become longer, not shorter: begin anew with {advice}"
        )
    changed = changed_setting(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), config)
    saved = SavedState.read(folder)
    for task, then in saved.rows.items() if changed is None else ():
        for split, number in then.items():
            if data.rows[task][split] != number:
                changed = changed or f"the {split} rows of task {task} were {number:,}, are {data.rows[task][split]:,}"
    for task, labels in saved.labels.items() if changed is None else ():
        if list(data.labels[task]) != list(labels):
            then_and_now = f"were {', '.join(labels)}, are {', '.join(data.labels[task])}"
            changed = changed or f"the labels of task {task} {then_and_now}"
    if changed is None and not config.training.allow_changed_data:
        for part, fingerprint in saved.fingerprints.items():
            if data.fingerprints.get(part, fingerprint) != fingerprint:
                what = f"the training rows of task {part}"
                if part == "encoder" or part.startswith("teacher of "):
                    what = f"the weights of {'model.encoder' if part == 'encoder' else f'the {part}'}"
                raise UserError(
                    f"training.resume_from_checkpoint: {what} are others than those that {name or folder} was made "
                    f"with, though of the same number; --training.allow_changed_data true goes on with them, "
                    f"{advice} begins anew"
                )
    if changed:
        raise UserError(
            f"training.resume_from_checkpoint: {name or folder} was made with other settings ({changed}); make them "
            f"as they were, or begin anew with {advice}"
        )
