"""The settings of a benchmark: workload, number of rounds, and output folder."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import isolated
from .results import Results


@dataclass(frozen=True)
class Setting:
    """Settings shared by all benchmarks.

    Args:
        folder: folder of the results and of temporary files.
        results: the results so far.
        config: YAML file of the mixture.
        encoder: value of `model.encoder`.
        smoke: whether this is a smoke test: tiny, one round, meaningless results.
        rounds: number of rounds, in each of which every contender runs once.
        steps: timed steps in a round of the speed benchmark, 32 examples each.
        seeds: seeds of the quality benchmark.
        num_train_epochs: epochs of training in the quality benchmark.
        deadline: `time.monotonic()` after which the quality benchmark starts no further run.
        mixed_precision: of the models in the quality benchmark, as Accelerate calls it.
        tasknet: Python executable of the environment with tasknet.
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
    mixed_precision: str
    tasknet: Path

    @property
    def log(self) -> Path:
        """Log file with the output of the measured programs."""
        return self.folder / "log.txt"

    @property
    def scratch(self) -> Path:
        """Folder for runs that are deleted after measurement."""
        return self.folder / "scratch"

    def options(self, config: Path | None = None, **overrides: Any) -> list[str]:
        """A command line of `run_multitask.py`; `training__seed=1` becomes `--training.seed 1`.

        By default there are no evaluations or checkpoints during training, so that they are not timed.
        """
        keys = {"model.encoder": self.encoder, "tracking.report_to": "[]", "training.resume_from_checkpoint": "never"}
        keys |= {"training.eval_steps": "null", "training.save_steps": 10**6}
        keys |= {key.replace("__", "."): value for key, value in overrides.items()}
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        return ["--config", str(config or self.config), *words]

    def isolated(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function in a separate process and returns its result."""
        return isolated.call(self.log, function, *args, **kwargs)

    def clear_scratch(self) -> None:
        """Deletes the runs that have been measured."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def config_of(self, tasks: Iterable[str], config: Path | None = None) -> Path:
        """Writes a mixture file with only some of the tasks, of the mixture or of another file."""
        names, source = list(tasks), config or self.config
        content = yaml.safe_load(source.read_text())
        content["tasks"] = {name: content["tasks"][name] for name in names}
        return self._write_config(f"{source.stem}-{'+'.join(names)}", content)

    def config_with(self, name: str, settings: Mapping[str, Mapping[str, Any]]) -> Path:
        """Writes a mixture file with other settings of its tasks; those that are None are left out."""
        content = yaml.safe_load(self.config.read_text())
        for task, of_task in settings.items():
            merged = content["tasks"][task] | of_task
            content["tasks"][task] = {key: value for key, value in merged.items() if value is not None}
        return self._write_config(name, content)

    def _write_config(self, name: str, content: Mapping[str, Any]) -> Path:
        path = self.folder / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def tasks(self) -> list[str]:
        """Names of the mixture's tasks."""
        return list(yaml.safe_load(self.config.read_text())["tasks"])

    def turns(self, contenders: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields (round, contender): every contender once per round, starting with a different one each round."""
        for number in range(self.rounds):
            first = number % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                yield number, contender
