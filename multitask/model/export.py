"""Export of one ordinary Hugging Face model per task."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.schema import Config
from ..errors import UserError
from ..tasks.base import Task
from ..utils import match_modes
from .lora import merged_weights, save_adapter
from .model_card import TrainedRun, model_card
from .multitask import MultitaskModel
from .pretrained import save_tokenizer


def check_export_folder(folder: Path, tasks: Iterable[str]) -> None:
    """Checks that the folder can be created and that nothing but exported models would be replaced.

    Raises:
        UserError: naming the folder.
    """
    for name in tasks:
        there = folder / name
        is_free = not there.exists() or (there.is_dir() and not any(there.iterdir()))
        if not is_free and not (there / "config.json").is_file():
            raise UserError(f"--output: {there} holds something that is no exported model; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be made: {error.strerror}") from error


def export_run(
    model: MultitaskModel,
    tasks: Sequence[Task],
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    run: TrainedRun,
    folder: Path,
    merge: bool,
) -> None:
    """Exports tasks of a run with their model cards.

    Args:
        model: the trained model.
        tasks: tasks to export.
        tokenizer: the encoder's.
        config: configuration of the run.
        run: facts about the run for the cards.
        folder: parent folder of the exports.
        merge: see `export_tasks`.
    """
    encoder = config.model.encoder
    for name, found in run.calibrations.items():
        task_config: Any = model.tasks[name].config
        task_config.calibration = {key: found[key] for key in ("temperature", "thresholds")}
    cards = {task.name: model_card(task, config.tasks[task.name], encoder, run, config.card, merge) for task in tasks}
    export_tasks(model, tokenizer, folder, encoder, merge, cards)


def export_tasks(
    model: MultitaskModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    encoder: str = "",
    merge: bool = True,
    cards: Mapping[str, str] | None = None,
) -> None:
    """Writes `folder/TASK` for every task: configuration with label names, weights, tokenizer.

    `AutoModelFor….from_pretrained(folder/TASK)` and `transformers.pipeline` read it without this project. With
    adapters, `folder/TASK/adapter` holds the task's adapter as PEFT writes it, and the head in `head.safetensors`.

    Args:
        model: the trained model, which is not changed.
        tokenizer: the encoder's.
        folder: parent folder of the exports.
        encoder: name of the encoder, written into the adapter's configuration.
        cards: model card of each task to export; None exports all tasks without cards.
        merge: also write the full weights, with adapters merged; required without adapters.
    """
    for name in cards or model.tasks:
        task_model = model.tasks[name]
        assert isinstance(task_model, PreTrainedModel)
        adapters = model.adapters.get(name, [])
        partial = folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if merge:
            task_model.save_pretrained(partial, state_dict=merged_weights(model, name))
        else:
            task_model.config.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
        if cards:
            (partial / "README.md").write_text(cards[name], encoding="utf-8")
        if adapters:
            save_adapter(model, adapters, encoder, partial / "adapter")
            head = set(model.head_parameters(name)) - set(model.adapter_parameters(name))
            tensors = {key: p.detach().contiguous() for key, p in task_model.named_parameters() if p in head}
            save_file(tensors, partial / "adapter" / "head.safetensors", metadata={"format": "pt"})
        match_modes(partial, partial / "config.json")
        shutil.rmtree(folder / name, ignore_errors=True)  # an earlier export
        partial.rename(folder / name)
