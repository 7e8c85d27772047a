"""How a benchmark is run: on what, how often, and where its results go."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import isolated
from .results import Results


@dataclass(frozen=True)
class Setting:
    """What all questions are asked with.

    Args:
        folder: of the results and of what is made on the way.
        results: the figures so far.
        config: YAML file of the mixture.
        encoder: as `model.encoder`.
        smoke: whether only to see that everything works: tiny, one round, figures without meaning.
        rounds: how often contenders take turns.
        steps: counted in a round of the speed benchmark, 32 examples each.
        seeds: of the quality benchmark.
        num_train_epochs: passes over the data that a model is trained for in the quality benchmark.
        deadline: `time.monotonic()` after which the quality benchmark begins no further run.
        tasknet: Python of the environment that tasknet is installed in.
    """

    folder: Path
    results: Results
    config: Path
    encoder: str
    smoke: bool
    rounds: int
    steps: int
    seeds: tuple[int, ...]
    num_train_epochs: float
    deadline: float
    tasknet: Path

    @property
    def log(self) -> Path:
        """What the measured programs print."""
        return self.folder / "log.txt"

    @property
    def scratch(self) -> Path:
        """For runs that are deleted as soon as they are measured."""
        return self.folder / "scratch"

    def options(self, config: Path | None = None, **overrides: Any) -> list[str]:
        """A command line of `run_multitask.py`; `training__seed=1` becomes `--training.seed 1`.

        Nothing is evaluated or saved on the way unless it is asked for, so that nothing else is timed.
        """
        keys = {"model.encoder": self.encoder, "tracking.report_to": "[]", "training.resume_from_checkpoint": "never"}
        keys |= {"training.eval_steps": "null", "training.save_steps": 10**6}
        keys |= {key.replace("__", "."): value for key, value in overrides.items()}
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        return ["--config", str(config or self.config), *words]

    def isolated(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function returns that runs in a process of its own."""
        return isolated.call(self.log, function, *args, **kwargs)

    def clear_scratch(self) -> None:
        """Deletes the runs that have been measured."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def config_of(self, tasks: Iterable[str]) -> Path:
        """The mixture's file with some of its tasks alone."""
        names = list(tasks)
        content = yaml.safe_load(self.config.read_text())
        content["tasks"] = {name: content["tasks"][name] for name in names}
        path = self.folder / "configs" / f"{'+'.join(names)}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def tasks(self) -> list[str]:
        """Names of the mixture's tasks."""
        return list(yaml.safe_load(self.config.read_text())["tasks"])

    def turns(self, contenders: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(round, contender): every contender once a round, each round beginning with another one."""
        for number in range(self.rounds):
            first = number % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                yield number, contender
