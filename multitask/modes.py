"""What `--mode` does besides training: evaluate a checkpoint, predict with it, export it."""

from pathlib import Path

from accelerate import Accelerator

from .checkpoint import load_checkpoint, read_state
from .command import Command
from .data import load_tasks
from .errors import UserError
from .evaluation import average, evaluate_tasks, predict
from .export import export_tasks
from .model_card import model_cards
from .predictor import Predictor, predict_file
from .rows import check_paths
from .run_folder import write_results
from .summary import results_table


def evaluate(command: Command, accelerator: Accelerator) -> None:
    """Measures a checkpoint on the validation rows; on those of its run it repeats the run's numbers."""
    config = command.config
    assert command.checkpoint
    model, heads, tokenizer = load_checkpoint(command.checkpoint, config)
    tasks = load_tasks(
        config.tasks, tokenizer, config.model.max_length, config.data_root, config.num_proc, accelerator
    )
    for task, head in zip(tasks, heads, strict=True):
        if task.labels != head.labels:
            raise UserError(f"tasks.{task.name}.label: the data has {task.labels}, the checkpoint {head.labels}")
    model = accelerator.prepare_model(model.to(accelerator.device), evaluation_mode=True)
    results = evaluate_tasks(
        [task for task in tasks if task.name in command.tasks],
        lambda task, split: predict(
            model, task.name, split, accelerator, tokenizer.pad_token_id, config.training.max_tokens_per_pass
        ),
    )
    accelerator.print(results_table(results, tasks))
    if command.output and accelerator.is_main_process:
        write_results(Path(command.output), read_state(command.checkpoint)["step"], results, average(results))


def predict_rows(command: Command, accelerator: Accelerator) -> None:
    """Answers the rows of a file."""
    assert command.input and command.output
    check_paths(command.input, command.output)
    predictor = Predictor(str(command.checkpoint), accelerator.device)
    answered, bad = predict_file(
        predictor, command.tasks, command.input, command.output, accelerator, command.skip_bad_rows
    )
    left_out = f"; {bad:,} left out, see {command.output}.bad.jsonl" if bad else ""
    accelerator.print(f"{answered:,} rows predicted in {command.output}{left_out}")


def export(command: Command, accelerator: Accelerator) -> None:
    """Writes one ordinary model per task, as the end of training does."""
    assert command.checkpoint
    config = command.config
    model, tasks, tokenizer = load_checkpoint(command.checkpoint, config)
    folder = Path(command.output or Path(config.training.output_dir) / "export")
    if accelerator.is_main_process:
        chosen = [task for task in tasks if task.name in command.tasks]
        cards = model_cards(chosen, config.tasks, config.model.encoder, read_state(command.checkpoint))
        merge = config.adapters is None or config.adapters.merge
        export_tasks(model, tokenizer, folder, config.model.encoder, merge, cards)
        print(f"One model per task in {folder}: {', '.join(task.name for task in chosen)}")
