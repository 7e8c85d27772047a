"""How start-up grows with rows: a file of a million, a hundred files of ten thousand."""

import csv
import os
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from . import starting, workload
from .figures import middle, ratios, spread, verdict
from .results import Results
from .setting import Setting

FEW, MANY = 1_000, 1_000_000
NUM_TASKS, ROWS_OF_A_TASK = 100, 10_000
# Goals: seconds and MiB more than with few rows or with one task; times the time of `datasets.map`.
MORE_SECONDS, MORE_MIB, MORE_SECONDS_OF_TASKS, MAP_TIMES = 1.0, 100, 5.0, 1.15


def measure(setting: Setting) -> None:
    """Measures starts with few and many rows, with one and many tasks; and how long the first start tokenises."""
    few, many = (100, 1_000) if setting.smoke else (FEW, MANY)
    num_tasks, of_task = (3, 100) if setting.smoke else (NUM_TASKS, ROWS_OF_A_TASK)
    cache = setting.folder / "cache"
    variants = {"few": (1, few), "many": (1, many), "one": (1, of_task), "tasks": (num_tasks, of_task)}
    os.environ["HF_DATASETS_CACHE"] = str(cache)
    try:
        options = {name: _options(setting, *shape) for name, shape in variants.items()}
        for number in range(setting.rounds):
            names = [f"rows/{number}/cold", *(f"rows/{number}/{name}" for name in variants)]
            if all(setting.results.get(name) for name in names):
                continue
            shutil.rmtree(cache, ignore_errors=True)
            setting.results.once(names[0], lambda: setting.isolated(cold_seconds, options["many"], cache))
            for name, of in options.items():
                setting.isolated(prepare, of, cache)  # tokenised, if it was not
                setting.results.once(f"rows/{number}/{name}", lambda of=of: starting.from_command(setting, of, 1))
                shutil.rmtree(setting.scratch / "rows", ignore_errors=True)
    finally:
        del os.environ["HF_DATASETS_CACHE"]
        shutil.rmtree(cache, ignore_errors=True)


def _options(setting: Setting, num_tasks: int, num_rows: int) -> list[str]:
    """A command line for tasks with so many rows each; the same rows again and again, numbered so that all differ."""
    folder = setting.folder.resolve() / "configs" / f"rows_{num_tasks}_{num_rows}"
    folder.mkdir(parents=True, exist_ok=True)
    found, _ = setting.isolated(workload.raw_rows, setting.options(), setting.tasks()[0])
    texts = [row["a"] for row in found]
    tasks = {}
    for task in range(num_tasks):
        path = folder / f"{task}.csv"
        if not path.exists():
            with path.open("w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["text", "label"])
                rows.writerows([f"{task} {row} {texts[row % len(texts)]}", "abc"[row % 3]] for row in range(num_rows))
        common = {"type": "classification", "dataset": "csv", "inputs": ["text"], "validation_split": None}
        tasks[f"t{task}"] = common | {"data_files": {"train": str(path)}}
    training = {"output_dir": str(setting.scratch / "rows"), "batch_size": max(32, num_tasks), "max_steps": 2}
    content = {"model": {"encoder": setting.encoder}, "tasks": tasks, "training": training | {"agreement_steps": 0}}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    return setting.options(config, training__output_dir=setting.scratch / "rows")


def prepare(options: list[str], cache: Path) -> None:
    """Tokenises all rows into a cache of `datasets`."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = cache
    workload.prepare(options)


def cold_seconds(options: list[str], cache: Path) -> dict[str, float]:
    """Seconds to read and tokenise a task's rows, and those of `datasets.map` with the tokenizer."""
    import datasets

    from multitask.cli.arguments import read_command
    from multitask.model.pretrained import find_encoder, load_tokenizer

    started = time.perf_counter()
    prepare(options, cache)
    seconds = {"seconds": time.perf_counter() - started}
    config = read_command(options).config
    (task,) = config.tasks.values()
    tokenizer: Any = load_tokenizer(find_encoder(config.model.encoder, None), config.model.max_length)
    assert task.data_files is not None
    rows = datasets.Dataset.from_csv(task.data_files["train"], cache_dir=str(cache / "map"))
    started = time.perf_counter()
    rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=config.model.max_length),
        batched=True,
        remove_columns=rows.column_names,
        cache_file_name=str(cache / "mapped.arrow"),
    )
    return seconds | {"map_seconds": time.perf_counter() - started}


# -- page section -----------------------------------------------------------------------------------------------------


def about_rows(results: Results) -> str:
    found = results.rounds("rows", ("cold", "few", "many", "one", "tasks"))
    if not found:
        return ""
    more = [many["start"] - few["start"] for many, few in zip(found["many"], found["few"], strict=True)]
    memory = [(m["peak_bytes"] - f["peak_bytes"]) / 2**20 for m, f in zip(found["many"], found["few"], strict=True)]
    of_tasks = [many["start"] - one["start"] for many, one in zip(found["tasks"], found["one"], strict=True)]
    cold = [c["seconds"] for c in found["cold"]]
    times = ratios(cold, [c["map_seconds"] for c in found["cold"]])
    return (
        f"**Rows**: with a warm cache, the first step comes {spread(more, 2, ' s')} later for {MANY:,} rows than for "
        f"{FEW:,}, goal ≤ {MORE_SECONDS:g} s: {verdict(middle(more), MORE_SECONDS, True)}; the peak memory is "
        f"{spread(memory, 0, ' MiB')} higher, goal ≤ {MORE_MIB}: {verdict(middle(memory), MORE_MIB, True)}. "
        f"{NUM_TASKS} tasks of {ROWS_OF_A_TASK:,} rows start {spread(of_tasks, 2, ' s')} later than one, goal ≤ "
        f"{MORE_SECONDS_OF_TASKS:g} s: {verdict(middle(of_tasks), MORE_SECONDS_OF_TASKS, True)}. The first start "
        f"reads and tokenises {MANY:,} rows in {spread(cold, 0, ' s')}, {spread(times)} times what `datasets.map` "
        f"takes with the tokenizer alone, goal ≤ {MAP_TIMES}: {verdict(middle(times), MAP_TIMES, True)}."
    )
