"""Distillation: what single-task models say of the training rows becomes a part of the labels.

The target of a row is its own label with the share of the steps that are done, and the teacher's prediction with the
rest: teacher annealing (Clark et al. 2019, BAM, https://arxiv.org/abs/1907.04829, section 3.2).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..config.schema import TaskConfig
from ..data.split import Targets
from ..errors import UserError, first_line
from ..model.multitask import MultitaskModel
from ..model.pretrained import find_encoder
from ..tasks.load import TaskData
from .evaluate import predict


def with_teachers(
    tasks: Sequence[TaskData],
    configs: Mapping[str, TaskConfig],
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    max_tokens_per_pass: int,
    static_shapes: bool = False,
    model_root: str | None = None,
    is_only_checked: bool = False,
) -> list[TaskData]:
    """The tasks of a run; those that have a teacher with its predictions beside the labels of their training rows.

    Args:
        tasks: of the run.
        configs: of the tasks.
        tokenizer: the encoder's.
        accelerator: of the run; all processes compute a part of the rows.
        max_tokens_per_pass: limit of tokens at a time.
        static_shapes: as of `predict`.
        model_root: local mirror of hub models.
        is_only_checked: whether teachers need only be there.

    Raises:
        UserError: if a teacher cannot be read, or has another tokenizer or other labels than the run.
    """
    taught = list(tasks)
    for place, task in enumerate(tasks):
        if teacher := configs[task.name].teacher:
            model, order = _load(task, teacher, tokenizer, model_root)
            if is_only_checked:
                continue
            model.to(accelerator.device)
            hidden = not accelerator.is_main_process
            with tqdm(total=len(task.train), desc=f"teacher of {task.name}", unit="row", disable=hidden) as bar:
                logits = predict(
                    model,
                    task.name,
                    task.train,
                    accelerator,
                    tokenizer.pad_token_id,
                    max_tokens_per_pass,
                    static_shapes,
                    bar.update,
                )
            own, said = task.type.targets(logits[:, order], task.train)
            targets = Targets(own.astype(np.float32), said.astype(np.float32), model.encoder_fingerprint())
            taught[place] = dataclasses.replace(task, train=dataclasses.replace(task.train, targets=targets))
    return taught


def _load(
    task: TaskData, teacher: str, tokenizer: PreTrainedTokenizerBase, model_root: str | None
) -> tuple[MultitaskModel, list[int]]:
    """A trained model of one task, and where each of the task's labels is among its outputs."""
    key = f"tasks.{task.name}.teacher"
    folder = find_encoder(teacher, model_root, key)
    try:
        own = task.type.auto_class.from_pretrained(folder, dtype=torch.float32)
        its_tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"{key}: '{teacher}' cannot be loaded: {first_line(error)}") from error
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{key}: '{teacher}' has another tokenizer than model.encoder; a teacher reads the same tokens"
        )
    names = [own.config.id2label[number] for number in sorted(own.config.id2label)]
    if task.type.several_sequences:  # a choice has one output, whatever the configuration names
        names = list(task.labels)
    wanted = list(task.labels) or names[:1]
    if sorted(names) != sorted(wanted):
        raise UserError(f"{key}: '{teacher}' knows {', '.join(names)}; the task has {', '.join(wanted)}")
    model = MultitaskModel()
    model.add_task(task.name, own)
    model.find_call({task.name: task.type.several_sequences})
    return model.eval(), [names.index(name) for name in wanted]
