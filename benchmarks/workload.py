"""The workload: a mixture of tasks on an encoder, and the sample of its rows that all contenders receive."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from multitask.cli.arguments import read_command
from multitask.config.schema import Config
from multitask.data.columns import text_at
from multitask.data.loader import StepDataset
from multitask.data.sources import load_splits
from multitask.mixture.mixture import Mixture, Rows
from multitask.mixture.sampling import Sampling
from multitask.model.lora import freeze_or_adapt
from multitask.model.multitask import MultitaskModel
from multitask.model.pretrained import build_model, find_encoder, load_tokenizer
from multitask.tasks.load import TaskData, load_tasks


@dataclass(frozen=True)
class Workload:
    """The components of a run before training starts, built as in `run_multitask.train`.

    Args:
        config: the run's configuration.
        encoder: folder of the encoder.
        tokenizer: the encoder's tokenizer.
        tasks: the tasks with their rows.
        mixture: maps a step to its rows.
        steps: maps a step to its batches.
    """

    config: Config
    encoder: str
    tokenizer: PreTrainedTokenizerBase
    tasks: list[TaskData]
    mixture: Mixture
    steps: StepDataset

    def build_model(self) -> MultitaskModel:
        """The model in its initial state."""
        return build_model(self.encoder, self.tasks, self.config.model.dropout, self.config.training.seed)

    def build_adapted_model(self) -> MultitaskModel:
        """The model in its initial state, with adapters."""
        model = self.build_model()
        freeze_or_adapt(model, self.config.model.freeze_encoder, self.config.adapters)
        return model

    def rows(self, start: int, stop: int) -> dict[str, Rows]:
        """The rows of each task in steps `start` to `stop` (from 0), shuffled."""
        steps = [self.mixture(step) for step in range(start, stop)]
        rng = np.random.default_rng(self.config.training.seed)
        return {task.name: rng.permutation(np.concatenate([s[task.name] for s in steps])) for task in self.tasks}

    def tokens(self, start: int, stop: int) -> int:
        """Number of non-padding tokens in steps `start` to `stop` (from 0)."""
        rows = self.rows(start, stop)
        return sum(int(task.train.tokens[rows[task.name]].sum()) for task in self.tasks)


def load(options: list[str]) -> Workload:
    """Parses a command line of `run_multitask.py` and loads the data that it names.

    Raises:
        UserError: as `run_multitask.py`.
    """
    config = read_command(options).config
    encoder = find_encoder(config.model.encoder, config.model_root)
    tokenizer = load_tokenizer(encoder, config.model.max_length)
    tasks = load_tasks(config.tasks, tokenizer, config.model.max_length, config.data_root, None, Accelerator(cpu=True))
    sizes = {task.name: len(task.train) for task in tasks}
    lengths = {task.name: task.train.length for task in tasks}
    training = config.training
    max_steps = training.max_steps or math.ceil(training.num_train_epochs * sum(sizes.values()) / training.batch_size)
    sampling = Sampling(sizes, training.batch_size, max_steps, **dataclasses.asdict(config.mixture))
    mixture = sampling.mixture(training.seed, lengths)
    splits = {task.name: task.train for task in tasks}
    steps = StepDataset(mixture, splits, tokenizer.pad_token_id, training.max_tokens_per_pass)
    return Workload(config, encoder, tokenizer, tasks, mixture, steps)


def tokens(options: list[str], start: int, stop: int) -> int:
    """Number of non-padding tokens in steps `start` to `stop` (from 0) of the run that the options describe."""
    return load(options).tokens(start, stop)


def prepare(options: list[str]) -> dict[str, int]:
    """Tokenises all data into the cache, so that no measurement does. Returns the number of rows of each task."""
    return {task.name: len(task.train) for task in load(options).tasks}


def raw_rows(options: list[str], name: str) -> tuple[list[dict[str, Any]], str]:
    """A task's rows, with texts `a` and `b` and `label`, and its type."""
    config = read_command(options).config
    of_task = config.tasks[name]
    dataset = load_splits(name, of_task, config.data_root)["train"]
    texts = [{k: text_at(row, c, name) for k, c in zip("ab", of_task.inputs, strict=True)} for row in dataset]
    return [text | {"label": row[of_task.label]} for text, row in zip(texts, dataset, strict=True)], of_task.type
