"""Averages between two logged steps, and the names under which numbers are logged."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..data.packing import Step
from ..evaluation.evaluate import Evaluation
from ..tasks.metrics import average


@dataclass
class LogWindow:
    """Sums over the steps since the last logged one."""

    loss: float = 0.0
    steps: int = 0
    task_losses: dict[str, float] = field(default_factory=dict)
    task_examples: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    padded_tokens: int = 0
    grad_norm: float = 0.0
    seconds: float = 0.0

    def add(
        self,
        step: Step,
        loss: float,
        task_losses: dict[str, float],
        padded_tokens: float,
        grad_norm: float,
        seconds: float,
    ) -> None:
        """Adds a step: its weighted mean loss, the sum of example losses by task, and its cost.

        Args:
            padded_tokens: tokens that the encoder computed on all devices, including padding.
            grad_norm: gradient norm before clipping.
            seconds: duration of the step.
        """
        self.loss += loss
        self.steps += 1
        for task, num_examples in step.examples.items():
            self.task_losses[task] = self.task_losses.get(task, 0.0) + task_losses[task]
            self.task_examples[task] = self.task_examples.get(task, 0) + num_examples
        self.tokens += step.tokens
        self.padded_tokens += int(padded_tokens)
        self.grad_norm = grad_norm
        self.seconds += seconds

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; of an empty state, empty sums."""
        vars(self).update(dataclasses.asdict(LogWindow(**state)))

    def clear(self) -> None:
        """Begins a new window."""
        self.load_state_dict({})

    def values(self) -> dict[str, float]:
        """Means over the window; a task without examples in it has no loss."""
        values = {"train/loss": self.loss / self.steps}
        for task, num_examples in self.task_examples.items():
            if num_examples:
                values[f"train/{task}/loss"] = self.task_losses[task] / num_examples
        values["train/grad_norm"] = self.grad_norm  # of the last step
        values["train/tokens_per_second"] = self.tokens / self.seconds
        values["train/padding_share"] = 1 - self.tokens / self.padded_tokens
        return values


def evaluation_values(found: Evaluation) -> dict[str, float]:
    """The values of an evaluation by logged name."""
    values = {
        f"eval/{task}/{name}": value for task, metrics in found.results.items() for name, value in metrics.items()
    }
    values |= {f"eval/{task}/loss": loss for task, loss in found.losses.items()}
    return values | {"eval/average": average(found.results), "eval/seconds": found.seconds}
