"""Sends a run's metrics to any of Accelerate's trackers, with the settings that each of them needs."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, TensorBoardTracker, get_available_trackers

from ..errors import UserError, first_line
from ..training.gradient_similarity import GROUP
from ..utils import flatten

# Settings that are paths on this machine and do not affect the training.
PLACES = ("data_root", "model_root")


WANDB_TIMEOUT_SECONDS = 30


AGREEMENT = f"train_{GROUP}"  # trackers sort groups by name, and this one shall be the last


# The keyword arguments of Accelerate's trackers that take the name of a run.
RUN_NAME = {"trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name", "clearml": "task_name"}


Tell = Callable[[str], None]


Points = set[tuple[int, str]]  # (step, name) of the values that a server already has


def check_trackers(names: Iterable[str]) -> None:
    """Refuses trackers that are not installed.

    Raises:
        UserError: names the package to install.
    """
    for name in names:
        if name not in map(str, get_available_trackers()):
            raise UserError(
                f"tracking.report_to: {name} is not installed; pip install {name.replace('_', '-')}, or leave it out"
            )


def shareable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without private values: no home folder, no password in a URL, none of `PLACES`."""
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


def for_trackers(values: Mapping[str, Any], agreement: str) -> dict[str, Any]:
    """The values for trackers: of the gradients' agreement, as much as `tracking.agreement` asks for.

    Args:
        values: logged values by name.
        agreement: `average`, `pairs` (and the average) or `layers` (all).
    """
    deepest = {"average": 2, "pairs": 3, "layers": 4}[agreement]
    chosen = {}
    for name, value in values.items():
        group, *rest = name.split("/")
        if group != GROUP:
            chosen[name] = value
        elif len(rest) < deepest:
            chosen["/".join([AGREEMENT, *rest])] = value
    return chosen


def run_name(folder: Path) -> str:
    """The name of a run: its folder's; of one of several seeds, together with the folder that holds them."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if re.fullmatch(r"seed-\d+", folder.name) else folder.name


class Trackers:
    """All trackers of a run. If one fails, it is dropped and the training continues.

    The whole history of the run is sent when the trackers start, so that a resumed run has neither gaps nor duplicate
    points: steps after the last checkpoint are computed again, and values that a killed process had not sent yet are
    in the checkpoint. Local trackers therefore start empty (otherwise they would keep the points after the checkpoint,
    and lack those before it on a new disk); W&B's server receives only the points that it lacks.

    Args:
        names: Accelerate's names of the trackers.
        project: project that groups the runs.
        folder: the run's folder, for trackers that write files.
        run_id: the run's id; a resumed run keeps it.
        config: the run's configuration without private values (see `shareable`).
        history: (step, values) of everything logged so far.
        tell: prints a message to the user.
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
        """Logs values; a list of rows is a table, which only W&B supports."""
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        for name, tracker in list(self.started.items()):
            with self._or_without(name):
                if name != "wandb":
                    if numbers:
                        tracker.log(numbers, step=step)
                elif new := {k: v for k, v in values.items() if v is not None and (step, k) not in self.known}:
                    # W&B's own step must never decrease, but some values arrive late: log the step as a value instead.
                    tracker.log({"step": step} | {k: _table(v) if isinstance(v, list) else v for k, v in new.items()})

    def finish(self) -> None:
        """Closes the trackers; W&B waits for pending uploads, for `WANDB_TIMEOUT_SECONDS` at most."""
        for name, tracker in list(self.started.items()):
            with self._or_without(name), contextlib.redirect_stdout(io.StringIO()):
                tracker.finish()
        self.started.clear()

    @contextlib.contextmanager
    def _or_without(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # an error in a tracker must not stop the training
            self.started.pop(name, None)
            self.tell(f"note: the run goes on without {name}: {type(error).__name__}: {first_line(error)}")


def _start(name: str, project: str, folder: Path, run_id: str, config: Mapping[str, Any]) -> GeneralTracker:
    """Starts a tracker other than W&B; local data of the run is deleted first, since the history is sent again."""
    settings = {key: value for key, value in flatten(dict(config)).items() if value is not None}
    flat = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in settings.items()}
    options: dict[str, Any] = {RUN_NAME[name]: run_name(folder)} if name in RUN_NAME else {}
    own = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        shutil.rmtree(folder / name, ignore_errors=True)
        project, own = "", TensorBoard  # the log folder's name is enough
    if name == "trackio":
        import trackio

        flat |= {"run.id": run_id}
        options |= {"config": flat, "embed": False}
        with contextlib.suppress(Exception):  # no such project yet
            for run in trackio.Api().runs(project):
                if (run.config or {}).get("run.id") == run_id:
                    run.delete()
    tracker = own(project, folder / name, **options) if own.requires_logging_directory else own(project, **options)
    with contextlib.redirect_stdout(io.StringIO()):  # some print a banner
        tracker.start()
    tracker.store_init_configuration(flat)
    return tracker


class TensorBoard(TensorBoardTracker):
    """Accelerate's tracker, but its hyperparameters stand in the run itself, beside its final metrics.

    `SummaryWriter.add_hparams` puts them into a run of their own, without metrics.
    """

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.hyperparameters = values

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        super().log(values, step, **kwargs)
        if metrics := [name for name in values if name.startswith("eval/")]:
            self._write_hyperparameters(metrics)

    def finish(self) -> None:
        self._write_hyperparameters([])
        super().finish()

    def _write_hyperparameters(self, metrics: Iterable[str]) -> None:
        """Once: TensorBoard takes the values of the metrics from the curves of the same names."""
        from torch.utils.tensorboard.summary import hparams

        values, self.hyperparameters = self.hyperparameters, {}
        for summary in hparams(values, dict.fromkeys(metrics, 0.0)) if values else ():
            self.writer.file_writer.add_summary(summary)


# -- W&B --------------------------------------------------------------------------------------------------------------


def _start_wandb(
    project: str, folder: Path, run_id: str, config: Mapping[str, Any], tell: Tell
) -> tuple[GeneralTracker, Points]:
    """Starts W&B without prompts or output: online if there is an API key and the server answers, else offline."""
    import wandb

    mode, why = _wandb_mode()
    quiet = wandb.Settings(silent=True)

    def start(mode: Any) -> GeneralTracker:
        settings = wandb.Settings(
            silent=True,
            mode=mode,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,  # would send the program, arguments, host and user
            x_transaction_log_flush_interval=1.0,  # flush often, so that a killed run loses little
            init_timeout=WANDB_TIMEOUT_SECONDS,
            finish_timeout=WANDB_TIMEOUT_SECONDS,
        )
        resume = {"resume": "allow"} if mode == "online" else {}
        tracker = LOGGER_TYPE_TO_CLASS["wandb"](
            project, id=run_id, name=run_name(folder), dir=str(folder), settings=settings, **resume
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
        wandb.teardown()  # releases the failed run
        wandb.setup(quiet)
        tracker = start("offline")
    run = tracker.tracker
    if why:
        here = folder / "wandb" / Path(run.dir).parent.name
        tell(f"note: W&B {why}; the run is recorded offline, to be uploaded with: wandb sync {here}")
    for earlier in (folder / "wandb").glob("offline-run-*"):  # superseded: the whole history is logged again
        if earlier.name != Path(run.dir).parent.name:
            shutil.rmtree(earlier, ignore_errors=True)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    tracker.store_init_configuration(dict(config))
    return tracker, known


def _wandb_mode() -> tuple[str, str]:
    """The mode in which W&B records, and why it is offline where it was to be online."""
    import wandb

    try:
        quiet = wandb.Settings(silent=True)
        mode = wandb.setup(quiet).settings.mode or "online"  # from WANDB_MODE, or as set by `wandb offline`
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            return "offline", "has no API key"
        return mode, ""
    except (wandb.errors.Error, ValueError) as error:  # a key or a mode that is none
        wandb.teardown()
        asked = os.environ.get("WANDB_MODE", "online")
        if asked not in get_args(wandb.Settings.model_fields["mode"].annotation):
            os.environ["WANDB_MODE"] = "offline"  # W&B refuses all that is asked of it otherwise
            return "offline", f"knows no WANDB_MODE={asked}"
        return "offline", f"does not take the API key ({first_line(error)})"


def _points_on_server(run: Any) -> Points:
    import wandb

    there = wandb.Api(timeout=WANDB_TIMEOUT_SECONDS).run(run.path)
    rows = there.scan_history(use_cache=False) if there.lastHistoryStep >= 0 else ()
    return {(row["step"], key) for row in rows if "step" in row for key, value in row.items() if value is not None}


def _table(rows: list[dict[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
