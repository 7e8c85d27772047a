"""One plain Hugging Face folder per task."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .model import MultitaskModel


def export_tasks(model: MultitaskModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes `folder/TASK` for every task: configuration with label names, weights, tokenizer.

    `AutoModelFor….from_pretrained(folder/TASK)` and `transformers.pipeline` read it without this project.
    """
    # As the tokenizer came: what tokenising left in it depends on whether the cache had the rows.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    for name, task_model in model.tasks.items():
        assert isinstance(task_model, PreTrainedModel)
        task_model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
