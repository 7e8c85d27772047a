"""Training speed compared with the alternatives and with the model alone."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from multitask.data.packing import pack
from multitask.data.sources import load_splits
from multitask.tasks.base import example_losses
from multitask.tasks.fields import fields_of
from multitask.training.distributed import keep_freed_memory
from multitask.training.optimizer import build_optimizer

from . import contenders, isolated, workload
from .figures import middle, ratios, spread, table, verdict
from .isolated import ROOT
from .results import Results
from .setting import Setting

WARMUP_STEPS = 2
PACKED_TOKENS = 16384  # of a pass
PACKING_GOAL = 10e6  # tokens a second
# Tried for those that leave it to their users; tasknet divides it by the number of choices.
BATCH_SIZES = {"trainer": (8, 16, 32), "tasknet": (8, 16, 32, 64), "grouped_trainer": (8, 16, 32)}
# For each contender its description and the goal: this project's non-padding tokens/s divided by the contender's.
CONTENDERS: dict[str, tuple[str, float | None]] = {
    "multitask": ("(a) this project: the real loop", None),
    "predecessor": ("(b) the predecessor's recipe: padded to 128, one task a step, batch 8", 5.7),
    "trainer": ("(c) Hugging Face Trainer: dynamic padding, batches of one task", 1.7),
    "tasknet": ("(d) tasknet", 1.6),
    "limit": ("(e) the limit: the model on dense batches, nothing else", 0.98),
    "grouped_trainer": ("(f) the Trainer with rows grouped by length", 1.15),
}


def measure(setting: Setting) -> None:
    """Runs every contender once per round; each round uses different rows."""
    results = setting.results
    chosen = {name: [_best_batch_size(setting, name)] for name in ("trainer", "grouped_trainer")}
    try:
        chosen["tasknet"] = [_best_batch_size(setting, "tasknet")]
    except isolated.Failed as failure:
        print(f"tasknet is left out: {failure}")
    names = [name for name in CONTENDERS if name != "tasknet" or name in chosen]
    for number, name in setting.turns(names):
        options, sizes = setting.options(training__seed=number), chosen.get(name, [])
        results.once(f"speed/{number}/{name}", lambda n=name, o=options, s=sizes: _run(setting, n, o, *s))
    for number in range(setting.rounds):
        options = setting.options(training__seed=number)
        results.once(f"parts/{number}", lambda o=options: setting.isolated(parts, o, setting.steps))
        results.once(f"packing/{number}", lambda o=options: setting.isolated(packing_rate, o, PACKED_TOKENS))


def _best_batch_size(setting: Setting, name: str) -> int:
    """The batch size with the most non-padding tokens/s; each is tried once before the first round."""
    if name == "tasknet" and not setting.tasknet.exists():
        raise isolated.Failed(f"there is no {setting.tasknet} (`make .venv-tasknet/.installed` makes it)")
    options = setting.options(training__seed=1000)
    for size in () if setting.smoke else BATCH_SIZES[name]:
        setting.results.once(f"batch_size/{name}/{size}", lambda s=size: _run(setting, name, options, s))
    return _chosen_batch_size(setting.results, name) or BATCH_SIZES[name][-1]


def _chosen_batch_size(results: Results, name: str) -> int | None:
    rates = {int(size): run["tokens"] / run["seconds"] for size, run in results.under(f"batch_size/{name}").items()}
    return max(rates, key=lambda size: rates[size]) if rates else None


def _run(setting: Setting, name: str, options: list[str], *batch_size: int) -> dict[str, float]:
    if name == "tasknet":
        return _run_tasknet(setting, options, *batch_size)
    contender = getattr(contenders, name)
    return setting.isolated(contender, options, WARMUP_STEPS, setting.steps, setting.scratch / name, *batch_size)


def _run_tasknet(setting: Setting, options: list[str], batch_size: int) -> dict[str, float]:
    request, result = setting.folder / "tasknet_request.json", setting.folder / "tasknet_result.json"
    asked = setting.isolated(tasknet_request, options, setting.steps)
    asked |= {"folder": str(setting.scratch / "tasknet"), "batch_size": batch_size}
    request.write_text(json.dumps(asked))
    isolated.command(setting.log, [setting.tasknet, ROOT / "benchmarks" / "tasknet_contender.py", request, result])
    return json.loads(result.read_text())


def tasknet_request(options: list[str], steps: int) -> dict[str, Any]:
    """The texts of the sample's rows, warm-up included, with the field names of tasknet's templates."""
    load = workload.load(options)
    sample, tasks = load.rows(0, WARMUP_STEPS + steps), {}
    for task in load.tasks:
        config = load.config.tasks[task.name]
        raw = load_splits(task.name, config, load.config.data_root)["train"].select(sample[task.name])
        rows = []
        for row, label in zip(raw, task.train.row_labels[sample[task.name]].tolist(), strict=True):
            fields = fields_of(task.name, config, row, len(task.labels))
            choices = {f"choice{i}": choice for i, choice in enumerate(fields.get("choices", ()))}
            second = {"s2": fields["text_pair"]} if "text_pair" in fields else {}
            rows.append({"s1": fields["text"], "y": label} | second | choices)
        tasks[task.name] = {"type": task.type.name, "rows": rows}
    return {
        "encoder": load.encoder,
        "max_length": load.config.model.max_length,
        "warmup_batches": WARMUP_STEPS,
        "tasks": tasks,
    }


def parts(options: list[str], steps: int) -> dict[str, float]:
    """Seconds per step of each part of a step, and `padding`, the share of padding among the computed tokens."""
    keep_freed_memory()  # as in a real run
    load = workload.load(options)
    model, config = load.build_model().train(), load.config.training
    optimizer = build_optimizer(model, 1e-5, 0.01)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = work()
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        return value

    real = 0
    for step in range(WARMUP_STEPS + steps):
        if step == WARMUP_STEPS:
            seconds.clear()
            real = model.computed_tokens = 0
        batch = timed("making the batch", lambda s=step: load.steps[s])
        real += batch.tokens
        for part in batch.passes:
            logits = timed("forward", lambda i=part.inputs: model(i))
            sums = [example_losses(t.type, logits[t.name], part.labels[t.name]).sum() for t in load.tasks]
            timed("backward", (sum(sums) / config.batch_size).backward)
        timed("clipping", lambda: nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm))
        timed("update", optimizer.step)
        timed("zeroing", optimizer.zero_grad)
    return {name: value / steps for name, value in seconds.items()} | {"padding": 1 - real / model.computed_tokens}


def packing_rate(options: list[str], tokens: int, repetitions: int = 200) -> float:
    """Tokens that one process gathers into passes of about so many tokens, in a second."""
    load = workload.load(options)
    splits = load.steps.splits
    per_example = workload.tokens(options, 0, 100) / (100 * load.config.training.batch_size)
    sizes = {task: round(share * tokens / per_example) for task, share in load.mixture.shares(1).items()}
    rng = np.random.default_rng(0)
    passes = [
        {task: rng.integers(0, len(splits[task]), size) for task, size in sizes.items()} for _ in range(repetitions)
    ]
    pack(passes[0], splits)
    gathered, started = 0, time.perf_counter()
    for rows in passes:
        gathered += pack(rows, splits).inputs.input_ids.numel()
    return gathered / (time.perf_counter() - started)


# -- what is written about it -----------------------------------------------------------------------------------------


def rates(results: Results) -> dict[str, list[float]]:
    """Non-padding tokens/s of every contender, in the rounds that all of them have completed."""
    rounds = results.rounds("speed")
    return {name: [r["tokens"] / r["seconds"] for r in rounds[name]] for name in CONTENDERS if name in rounds}


def section(results: Results) -> str:
    """The page's section on speed."""
    by_name = rates(results)
    if not by_name.get("multitask"):
        return ""
    own, rows = by_name["multitask"], []
    for name, (title, goal) in CONTENDERS.items():
        of_rounds = ratios(own, by_name[name]) if name in by_name else []
        reached = (
            "" if goal is None else f"≥ {goal}: {verdict(middle(of_rounds), goal, reason=_reason(name, of_rounds))}"
        )
        size = _chosen_batch_size(results, name)
        title += f", batch {size}" if size else ""
        rate = f"{middle(by_name[name]):,.0f}" if name in by_name else "–"
        rows.append([title, rate, spread(of_rounds) if name != "multitask" else "1", reached])
    num_rounds = len(own)
    counted = results.rounds("speed")["multitask"][0]["tokens"]
    text = [
        "## Speed",
        f"Forward, backward and update of the same rows (about {counted:,.0f} real tokens a round, others in each of "
        f"{num_rounds} rounds; in each, every contender ran once). The ratio is how many times a contender's real "
        "tokens a second this project reaches in the same round: the median (smallest–largest). The absolute rates, "
        "medians too, are this machine's at that hour.",
        table(["contender", "real tokens/s", "this project is … times it", "goal"], rows),
        "The rows are those of consecutive steps of the real run over all data, which are random rows, grouped by "
        "length as they are there; the others get the same rows in an order of their own (tasknet those of the "
        "warm-up among them). All train the same encoder and heads with the same AdamW, fused, and the same gradient "
        "clipping; tasknet has a model of its own around the same encoder. Of what this project has before (b), (c) "
        "and (d), about 5 % of a step (0.83 to 1.04 of its time in eight pairs) is that it keeps freed memory for the "
        "next step, as the limit does here; others can have that with `MALLOC_MMAP_MAX_=0` and "
        "`MALLOC_TRIM_THRESHOLD_=4000000000` in the environment.",
    ]
    if parts_of := list(results.under("parts").values()):
        names = [name for name in parts_of[0] if name != "padding"]
        shares = {n: [100 * p[n] / sum(p[m] for m in names) for p in parts_of] for n in names}
        text += [
            "Where a step's time goes, in percent of it:",
            table(["part", "percent"], [[name, spread(shares[name])] for name in names]),
            f"Of the tokens computed on, {spread([100 * p['padding'] for p in parts_of], 1, ' %')} are padding.",
        ]
    if packing := list(results.under("packing").values()):
        rate = middle(packing) or 0.0
        text += [
            f"One process gathers {spread([value / 1e6 for value in packing], 1)} million tokens a second into passes "
            f"of about {PACKED_TOKENS:,} (goal {PACKING_GOAL / 1e6:.0f}: {verdict(rate, PACKING_GOAL)})."
        ]
    return "\n\n".join(text)


def _reason(name: str, of_rounds: list[float]) -> str:
    """How often a goal that the median misses is reached."""
    goal = CONTENDERS[name][1] or 0.0
    reached = sum(ratio >= goal for ratio in of_rounds)
    return f"{reached} of {len(of_rounds)} rounds reach it"


def picture_rows(results: Results) -> list[tuple[str, float]]:
    """(contender, its median rate relative to this project's), for the chart."""
    by_name = rates(results)
    own = by_name.get("multitask", [])
    return [(n, middle(ratios(by_name[n], own)) or 0.0) for n in CONTENDERS if n in by_name and own]
