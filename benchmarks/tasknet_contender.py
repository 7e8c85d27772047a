"""Trains with tasknet (https://pypi.org/project/tasknet), in a separate environment without this project.

python benchmarks/tasknet_contender.py REQUEST.json RESULT.json
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import evaluate

if os.environ.get("HF_HUB_OFFLINE") == "1":
    evaluate.load = lambda *args, **kwargs: None  # on import, tasknet loads an unneeded metric from the hub

import tasknet
import transformers


class Clock(transformers.TrainerCallback):
    """Records the times of the last warm-up step and of the last step."""

    def __init__(self, warmup_batches: int):
        self.warmup_batches, self.tokens, self.started, self.ended = warmup_batches, 0, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended = time.perf_counter()
        if state.global_step == self.warmup_batches:
            self.started, self.tokens = self.ended, 0


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    tasks = []
    for name, task in request["tasks"].items():
        rows = datasets.Dataset.from_list(task["rows"])
        few = rows.select(range(1))
        splits = datasets.DatasetDict(train=rows, validation=few, test=few)
        if task["type"] == "multiple_choice":
            choices = [column for column in rows.column_names if column.startswith("choice")]
            tasks.append(tasknet.MultipleChoice(splits, name, s1="s1", y="y", choices=choices))
        else:
            tasks.append(tasknet.Classification(splits, name, s1="s1", s2="s2", y="y"))
    hparams = {
        "model_name": request["encoder"],
        "max_length": request["max_length"],
        "per_device_train_batch_size": request["batch_size"],
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "output_dir": request["folder"],
        "use_cpu": True,
        "report_to": "none",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 10,
    }
    model, trainer = tasknet.Model_Trainer(tasks, hparams)
    clock = Clock(request["warmup_batches"])
    trainer.add_callback(clock)
    forward = model.forward

    def counting(task: Any, **kwargs: Any) -> Any:
        clock.tokens += int(kwargs["attention_mask"].sum())
        return forward(task, **kwargs)

    model.forward = counting
    trainer.train()
    Path(sys.argv[2]).write_text(json.dumps({"seconds": clock.ended - clock.started, "tokens": clock.tokens}))


if __name__ == "__main__":
    main()
