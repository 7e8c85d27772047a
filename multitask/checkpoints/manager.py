"""`CheckpointManager`: saves, restores, prunes, uploads and exports the checkpoints of a run."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from threading import Thread

from accelerate import Accelerator
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..config.schema import Config, to_yaml
from ..model.export import export_run
from ..tasks.base import Task
from ..tracking.run_directory import NUMBERS
from ..training.early_stopping import EarlyStopping
from ..training.state import SavedState, TrainState
from .format import (
    LAST_WEIGHTS,
    Snapshot,
    delete_checkpoint,
    load_checkpoint,
    load_optimizer,
    load_trained_weights,
    take_part_in_saving,
    take_snapshot,
    write_checkpoint,
)
from .manifest import checkpoint_at, checkpoints_in, step_name, step_of
from .resume import RunData, find_best, open_run
from .uploads import Uploader, finish_uploads

Log = Callable[[int, Mapping[str, float]], object]  # (step, values)


class CheckpointManager:
    """Restores a run, saves it in the background, prunes and uploads its checkpoints, exports the selected one.

    All processes call the same methods at the same time; only the main process writes.

    Args:
        config: configuration of the run.
        state: training state to save and restore.
        tasks: tasks of the run.
        tokenizer: the encoder's tokenizer.
        accelerator: accelerator of the run.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        tasks: Sequence[Task],
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
    ):
        self.config, self.state, self.tasks, self.tokenizer = config, state, tasks, tokenizer
        self.accelerator = accelerator
        self.folder = Path(config.training.output_dir)
        self.writer = Background()
        self.uploads: Uploader | None = None

    def restore(self) -> None:
        """Opens the run's folder and restores the checkpoint to resume from, if there is one.

        Raises:
            UserError: if the checkpoint is damaged or was made with other settings, or if the folder or the bucket
                cannot be written to; on all processes.
        """
        config, state = self.config, self.state
        data = RunData(state.rows, state.labels, state.fingerprints)
        checkpoint = open_run(self.folder, config, data, state.max_steps, self.accelerator)
        if checkpoint:
            last, saved = checkpoint / LAST_WEIGHTS, SavedState.read(checkpoint)
            model = load_file(checkpoint / "model.safetensors")
            load_trained_weights(state.model, load_file(last) if last.exists() else model)
            state.average.load(saved.step, saved.averaged_steps, model)
            load_optimizer(state.optimizer, state.model, checkpoint / "optimizer.safetensors")
            state.load(saved)
        if self.accelerator.is_main_process:
            if checkpoint and config.training.load_best_model_at_end:
                find_best(state.stopping, checkpoint, self.folder, config, self.accelerator.print)
            if config.checkpoints.remote:
                keep = partial(steps_to_keep, config.training.save_total_limit, state.stopping)
                self.uploads = Uploader(config.checkpoints.remote, keep, tqdm.write)

    def save(self, log: Log) -> None:
        """Copies the state to host memory; a thread writes it to disk and queues its upload.

        Args:
            log: receives `checkpoint/seconds`, the time training waited, and the seconds of completed uploads.
        """
        started = time.perf_counter()
        self.writer.wait()  # for the previous checkpoint; raises its error
        state, folder = self.state, self.folder
        state.stopping.saved(state.step, state.results)
        average = state.average.tensors()
        if not self.accelerator.is_main_process:
            return take_part_in_saving(state.model, state.optimizer)
        numbers = [folder / name for name in NUMBERS if (folder / name).exists()]
        saved = state.saved()
        snapshot = take_snapshot(
            state.model, state.optimizer, self.tokenizer, to_yaml(self.config), saved, numbers, average
        )
        self.writer.start(partial(self._write, folder / "checkpoints" / step_name(state.step), snapshot))
        log(state.step, {"checkpoint/seconds": time.perf_counter() - started})
        if self.uploads:
            self.uploads.report(log)

    def _write(self, path: Path, snapshot: Snapshot) -> None:
        write_checkpoint(path, snapshot)
        if self.uploads:
            self.uploads.submit(path)
        busy = self.uploads.busy() if self.uploads else set()
        prune(self.folder, self.config.training.save_total_limit, self.state.stopping.best["step"], busy)

    def export(self, folder: Path) -> None:
        """Writes one ordinary model per task from the last or the best checkpoint, on the main process."""
        if not self.accelerator.is_main_process:
            return
        self.writer.wait()
        stopping, training = self.state.stopping, self.config.training
        chosen = checkpoints_in(self.folder)[0]
        best = checkpoint_at(self.folder, stopping.best["step"])
        best_by = None
        if training.load_best_model_at_end and best is not None:
            print(f"\nThe best by {stopping.metric} was step {stopping.best['step']}, which is exported: {best}")
            chosen, best_by = best, stopping.metric
        model, *_ = load_checkpoint(chosen, self.config)
        merge = self.config.adapters is None or self.config.adapters.merge
        run = SavedState.read(chosen).trained_run(best_by)
        export_run(model, self.tasks, self.tokenizer, self.config, run, folder, merge)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk; raises the error if writing failed."""
        self.writer.wait()

    def close(self, status: int, log: Log, *folders: Path) -> int:
        """Waits until everything is written and uploaded.

        Args:
            status: exit status of the run.
            log: as in `save`.
            folders: folders to upload besides the checkpoints.

        Returns:
            `status`, or 1 if an upload is incomplete.
        """
        self.writer.wait()
        best = checkpoint_at(self.folder, self.state.stopping.best["step"])
        is_complete = not self.uploads or finish_uploads(self.uploads, folders, print, log, best)
        return status if is_complete else 1


class Background:
    """Runs one job at a time in a thread; the process does not exit before it is done."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Starts a job after the previous one is done; raises the previous job's error."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = Thread(target=run, name="background")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the job is done; raises its error."""
        if self._thread:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error:
            raise error


def prune(folder: Path, limit: int | None, best: int | None, busy: Set[Path]) -> None:
    """Deletes a run's checkpoints except the newest, the best, and those being uploaded.

    Args:
        folder: the run's folder.
        limit: number of newest checkpoints to keep; None keeps all.
        best: step of the best checkpoint; None if none has been evaluated.
        busy: checkpoints being uploaded.
    """
    for path in checkpoints_in(folder)[limit or sys.maxsize :]:
        if step_of(path) != best and path not in busy:
            delete_checkpoint(path)


def steps_to_keep(limit: int | None, stopping: EarlyStopping, steps: Sequence[int]) -> set[int]:
    """The newest `limit` of the uploaded `steps` (in ascending order) and the best; None keeps all."""
    return {*steps[-(limit or 0) :]} | ({stopping.best["step"]} & {*steps})  # -0 is the whole list
