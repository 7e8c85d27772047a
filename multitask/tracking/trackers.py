"""Accelerate's trackers (W&B, TensorBoard, …) with the special cases that each of them needs."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from ..errors import UserError, first_line
from ..utils import flatten

# Names of values that differ between machines and say nothing about what is learned.
PLACES = ("data_root", "model_root")


WANDB_TIMEOUT_SECONDS = 30


Tell = Callable[[str], None]


Points = set[tuple[int, str]]  # (step, name) of what a service has


def check_trackers(names: Iterable[str]) -> None:
    """Refuses trackers that are not installed.

    Raises:
        UserError: naming the package to install.
    """
    for name in names:
        if name not in map(str, get_available_trackers()):
            raise UserError(
                f"tracking.report_to: {name} is not installed; pip install {name.replace('_', '-')}, or leave it out"
            )


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without private values: the home folder, passwords in URLs, and the keys in `PLACES`."""
    home = os.path.expanduser("~")

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        if not isinstance(value, str):
            return value
        value = re.sub(r"(?<=://)[^/@\s]+@", "", value)
        return re.sub(rf"{re.escape(home)}(?=/|$)", "~", value) if len(home) > 1 else value

    return clean({key: value for key, value in config.items() if key not in PLACES})


class Trackers:
    """The trackers of a run. Each receives the complete run; if one fails, the run continues without it.

    When they start, the history of the run is sent again, so that curves have neither gaps nor duplicate points
    however the previous process ended. Local trackers therefore start from nothing (they would keep points after the
    checkpoint, or lack earlier ones on an empty disk); the W&B server is sent only the points that it lacks.

    Args:
        names: Accelerate's names of the trackers.
        project: project that the runs are grouped by.
        folder: of the run, for those that write files.
        run_id: id of the run; a resumed run keeps it.
        config: the run's configuration without private values (`shareable`).
        history: (step, values) logged so far.
        tell: receives messages for the user.
    """

    def __init__(
        self,
        names: Sequence[str],
        project: str,
        folder: Path,
        run_id: str,
        config: Mapping[str, Any],
        history: Iterable[tuple[int, Mapping[str, Any]]],
        tell: Tell,
    ):
        self.tell = tell
        self.started: dict[str, GeneralTracker] = {}
        self.known: Points = set()
        for name in dict.fromkeys(names):
            with self._or_without(name):
                if name == "wandb":
                    self.started[name], self.known = _start_wandb(project, folder, run_id, config, tell)
                else:
                    self.started[name] = _start(name, project, folder, run_id, config)
        for step, values in history if self.started else ():
            self.log(step, values)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Sends values; lists of rows become tables, which only W&B takes."""
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        for name, tracker in list(self.started.items()):
            with self._or_without(name):
                if name != "wandb":
                    if numbers:
                        tracker.log(numbers, step=step)
                elif new := {k: v for k, v in values.items() if v is not None and (step, k) not in self.known}:
                    # The step is a value, the x axis: W&B's own must never fall, and some numbers come late.
                    tracker.log({"step": step} | {k: _table(v) if isinstance(v, list) else v for k, v in new.items()})

    def finish(self) -> None:
        """Closes the trackers; W&B waits a limited time for its uploads."""
        for name, tracker in list(self.started.items()):
            with self._or_without(name), contextlib.redirect_stdout(io.StringIO()):
                tracker.finish()
        self.started.clear()

    @contextlib.contextmanager
    def _or_without(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a service or its library does, the training goes on
            self.started.pop(name, None)
            self.tell(f"note: the run goes on without {name}: {type(error).__name__}: {first_line(error)}")


def _start(name: str, project: str, folder: Path, run_id: str, config: Mapping[str, Any]) -> GeneralTracker:
    """Starts a tracker other than W&B; local data of the run is removed, as the history is sent again."""
    options: dict[str, Any] = {}
    own = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        shutil.rmtree(folder / name, ignore_errors=True)
        project = ""  # the folder's name
    if name == "trackio":
        import trackio

        options = {"name": run_id, "embed": False}
        with contextlib.suppress(Exception):  # no such project yet
            for run in trackio.Api().runs(project):
                if run.name == run_id:
                    run.delete()
    tracker = own(project, folder / name, **options) if own.requires_logging_directory else own(project, **options)
    with contextlib.redirect_stdout(io.StringIO()):  # some greet
        tracker.start()
    flat = flatten(dict(config))
    tracker.store_init_configuration({k: v if isinstance(v, (int, float, str)) else str(v) for k, v in flat.items()})
    return tracker


# -- W&B --------------------------------------------------------------------------------------------------------------


def _start_wandb(
    project: str, folder: Path, run_id: str, config: Mapping[str, Any], tell: Tell
) -> tuple[GeneralTracker, Points]:
    """Starts W&B: online if there is a key and the service answers, otherwise offline; without prompts or output."""
    import wandb

    quiet = wandb.Settings(silent=True)
    mode = wandb.setup(quiet).settings.mode  # WANDB_MODE, or what `wandb offline` has set
    why = ""
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        mode, why = "offline", "has no API key"

    def start(mode: Any) -> GeneralTracker:
        settings = wandb.Settings(
            silent=True,
            mode=mode,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,  # program, arguments, host and user
            x_transaction_log_flush_interval=1.0,  # what a run that is killed leaves
            init_timeout=WANDB_TIMEOUT_SECONDS,
            finish_timeout=WANDB_TIMEOUT_SECONDS,
        )
        resume = {"resume": "allow"} if mode == "online" else {}
        tracker = LOGGER_TYPE_TO_CLASS["wandb"](
            project, id=run_id, name=folder.name, dir=str(folder), settings=settings, **resume
        )
        tracker.start()
        return tracker

    known: Points = set()
    try:
        tracker = start(mode)
        if mode == "online" and tracker.tracker.resumed:
            known = _points_on_server(tracker.tracker)
    except Exception as error:
        if mode != "online":
            raise
        why = f"cannot be reached ({first_line(error)})"
        wandb.teardown()  # lets go of the run
        wandb.setup(quiet)
        tracker = start("offline")
    run = tracker.tracker
    if why:
        here = folder / "wandb" / Path(run.dir).parent.name
        tell(f"note: W&B {why}; the run is recorded offline, to be uploaded with: wandb sync {here}")
    for earlier in (folder / "wandb").glob("offline-run-*"):  # all of it is sent again
        if earlier.name != Path(run.dir).parent.name:
            shutil.rmtree(earlier, ignore_errors=True)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    tracker.store_init_configuration(dict(config))
    return tracker, known


def _points_on_server(run: Any) -> Points:
    import wandb

    there = wandb.Api(timeout=WANDB_TIMEOUT_SECONDS).run(run.path)
    rows = there.scan_history(use_cache=False) if there.lastHistoryStep >= 0 else ()
    return {(row["step"], key) for row in rows if "step" in row for key, value in row.items() if value is not None}


def _table(rows: list[dict[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
