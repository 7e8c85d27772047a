"""Modes other than training: evaluate a checkpoint, predict with it, export it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from ..checkpoints.format import load_checkpoint
from ..config.load import load_config
from ..data.split import Split
from ..errors import UserError
from ..evaluation.evaluate import evaluate_tasks, mean_loss, predict, progress_bar
from ..inference.prediction_files import bad_rows_file, check_paths
from ..inference.predictor import Predictor, predict_file
from ..model.export import check_export_folder, export_run
from ..model.hub import push_to_hub
from ..tasks.calibration import NONE
from ..tasks.load import TaskData, load_tasks
from ..tasks.metrics import average
from ..tracking.run_directory import write_results
from ..training.state import SavedState
from ..training.xla import uses_static_shapes
from .arguments import Command
from .console import results_table


def evaluate(command: Command, accelerator: Accelerator) -> None:
    """Evaluates a checkpoint on the validation rows; with the data of its run, this reproduces the run's results."""
    config = command.config
    assert command.checkpoint
    if command.output and (Path(command.output).is_dir() or not Path(command.output).parent.is_dir()):
        raise UserError(f"--output: {command.output} is no file in a folder that exists (seen from {Path.cwd()})")
    model, heads, tokenizer = load_checkpoint(command.checkpoint, config)
    chosen = {name: config.tasks[name] for name in command.tasks}
    labels = {head.name: head.labels for head in heads}
    max_length = config.model.max_length
    tasks = load_tasks(chosen, tokenizer, max_length, config.data_root, config.num_proc, accelerator, labels)
    trained = {head.name: head for head in heads}
    tasks = [replace(task, calibration=trained[task.name].calibration) for task in tasks]
    static = uses_static_shapes(config.training.static_shapes, accelerator)
    model = accelerator.prepare_model(model.to(accelerator.device), evaluation_mode=True)
    max_tokens = config.training.max_tokens_per_pass
    losses: dict[str, float] = {}

    def logits_of(task: TaskData, split: Split) -> NDArray[np.float32]:
        logits = predict(model, task.name, split, accelerator, tokenizer.pad_token_id, max_tokens, static, bar.update)
        losses[task.name] = mean_loss(task.type, task.calibration.applied(logits), split)
        return logits

    with progress_bar(tasks, accelerator) as bar:
        results = evaluate_tasks(tasks, logits_of)
    accelerator.print(results_table(results, tasks))
    if with_one := [task.name for task in tasks if task.calibration != NONE]:
        accelerator.print(f"\nCalibrated as its run found best on its validation rows: {', '.join(with_one)}")
    if command.output and accelerator.is_main_process:
        try:
            step = SavedState.read(command.checkpoint).step
            write_results(Path(command.output), step, results, average(results), losses=losses)
        except OSError as error:
            raise UserError(f"--output: {command.output} cannot be written: {error.strerror}") from error


def predict_rows(command: Command, accelerator: Accelerator) -> None:
    """Predicts the rows of a file."""
    assert command.input and command.output
    check_paths(command.input, command.output)
    if command.input == "-" and accelerator.num_processes > 1:
        raise UserError("--input: - is read by one process; give a file, or start one process")
    predictor = Predictor(str(command.checkpoint), accelerator.device, command.config)
    answered, bad = predict_file(
        predictor, command.tasks, command.input, command.output, accelerator, command.skip_bad_rows
    )
    left_out = f"; {bad:,} left out, see {bad_rows_file(command.output)}" if bad else ""
    if command.output != "-" and accelerator.is_main_process:
        print(f"{answered:,} rows predicted in {command.output}{left_out}")


def export(command: Command, accelerator: Accelerator) -> None:
    """Writes one ordinary model per task, as the end of training does."""
    assert command.checkpoint
    run = command.checkpoint.parent.parent if command.checkpoint.parent.name == "checkpoints" else None
    if run is None and not command.output:
        raise UserError(f"--output is missing; {command.checkpoint} is in no run's folder")
    folder = Path(command.output or f"{run}/export")
    check_export_folder(folder, command.tasks)
    model, tasks, tokenizer = load_checkpoint(command.checkpoint, command.config)
    if accelerator.is_main_process:
        # The model card describes the run as trained, without the overrides of this command.
        trained = load_config(command.checkpoint / "config.yaml")
        merge = command.config.adapters is None or command.config.adapters.merge
        chosen = [task for task in tasks if task.name in command.tasks]
        saved = SavedState.read(command.checkpoint).trained_run()
        export_run(model, chosen, tokenizer, trained, saved, folder, merge)
        print(f"One model per task in {folder}: {', '.join(command.tasks)}")
        if command.push_to_hub:
            print("On the hub:", *push_to_hub(folder, command.push_to_hub, command.tasks))


OTHER_MODES = {"evaluate": evaluate, "predict": predict_rows, "export": export}
