"""Labels: three on one row beside three tasks of the same rows; and which loss helps with which labels, and which not.

The rows are those of the mixture's first task, a number for two texts, from which the labels are made.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml

from . import clocked, workload
from .figures import mean_and_deviation, middle, ratios, spread, table, verdict
from .results import Results
from .setting import Setting

Rows = list[dict[str, Any]]

GOAL = 0.40  # of the time of three tasks
STEPS, WARMUP, BATCH = 24, 4, 64  # rows; three tasks have three times as many a step
NUM_ROWS, RATE, EPOCHS = 1500, 1e-4, 3  # of a run of losses: to train on, and as many to judge by
RARE, WRONG = 0.08, 0.3  # share of the rare class; of training labels that are turned round
# Each loss with a case where it helps, one where it does not, and the metric it is judged by.
LOSSES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "class_weights: balanced": ({"class_weights": "balanced"}, "rare", "even", "f1"),
    "focal_gamma: 2": ({"focal_gamma": 2.0}, "even", "rare", "loss"),
    "label_smoothing_factor: 0.2": ({"label_smoothing_factor": 0.2}, "even", "wrong", "loss"),
    "probabilities as labels": ({"label": ["no", "yes"]}, "between", "sure", "accuracy"),
}
CASES = {
    "even": "both classes alike",
    "rare": f"one class has {RARE:.0%} of the rows",
    "wrong": f"{WRONG:.0%} of the training labels are wrong",
    "between": "people disagree on them; a label is one vote",
    "sure": "people agree on them",
}


def measure(setting: Setting) -> None:
    """Times steps with three labels on a row, and trains with each loss on its two cases."""
    name = setting.tasks()[0]
    rows = setting.isolated(workload.raw_rows, setting.options(), name)[0]
    of_contenders = {"one encoding": _config(setting, rows, True), "three tasks": _config(setting, rows, False)}
    for number, contender in setting.turns(list(of_contenders)):
        options = setting.options(
            of_contenders[contender], training__batch_size=BATCH if "one" in contender else 3 * BATCH
        )
        setting.results.once(
            f"labels/{number}/{contender}",
            lambda o=options: setting.isolated(step_times, o, setting.scratch / "labels"),
        )
    for seed in setting.seeds:
        for option, (settings, *cases, _) in LOSSES.items():
            for case in cases:
                _train(setting, rows, seed, case, "plain", {})
                _train(setting, rows, seed, case, option, settings)


def _config(setting: Setting, rows: Rows, together: bool) -> Path:
    """A mixture file of three labels for the same rows: one rows of them, or three tasks."""
    path = _write(setting.folder / "labels" / "three.jsonl", rows)
    common: dict[str, Any] = {"dataset": "json", "data_files": {"train": str(path)}, "inputs": ["a", "b"]}
    common["validation_split"] = None
    labels = {
        "number": {"type": "regression", "label": "label"},
        "kind": {"type": "classification", "label": "kind"},
        "tags": {"type": "multi_label_classification", "label": "tags"},
    }
    tasks = {"rows": common | {"labels": labels}} if together else {n: common | of for n, of in labels.items()}
    return _mixture(setting, f"labels-{'together' if together else 'apart'}", tasks)


def _mixture(setting: Setting, name: str, tasks: dict[str, Any]) -> Path:
    path = setting.folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    training = {"output_dir": str(setting.scratch / "labels"), "max_steps": STEPS, "agreement_steps": 0}
    path.write_text(yaml.safe_dump({"model": {"encoder": ""}, "tasks": tasks, "training": training}, sort_keys=False))
    return path


def _write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        row |= {"kind": "even" if len(row["a"]) % 2 == 0 else "odd", "tags": ["long"] * (len(row["a"]) > 50)}
        row["tags"] += ["question"] * ("?" in row["b"]) + ["short"] * (len(row["b"]) < 50)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def step_times(options: list[str], folder: Path) -> dict[str, float]:
    """Seconds and real tokens of a step, and how many rows each head has seen in it."""
    run = clocked.train_anew([*options, "--training.logging_steps", "1"], folder)
    marks, (first, *_) = run["marks"], [line for line in run["logged"] if "train/loss" in line]
    seen = [value for name, value in first.items() if name.endswith("/examples")]
    lengths = [line["train/tokens_per_second"] for line in run["logged"] if "train/tokens_per_second" in line]
    seconds = (marks[-1] - marks[WARMUP - 1]) / (len(marks) - WARMUP)
    return {"seconds": seconds, "tokens": seconds * mean(lengths[WARMUP:]), "rows": seen[0]}


def case_rows(rows: Rows, case: str, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on and to judge by: `label`, the right class, and `no` and `yes`, their probabilities."""
    rng = np.random.default_rng(seed)
    scores = np.array([row["label"] for row in rows], float)
    scores = (scores - scores.min()) / np.ptp(scores)
    chosen = {"between": (scores > 0.2) & (scores < 0.8), "sure": (scores <= 0.2) | (scores >= 0.8)}
    numbers = rng.permutation(np.flatnonzero(chosen.get(case, np.ones(len(rows), bool))))[: 2 * NUM_ROWS]
    bound = {"rare": np.quantile(scores, 1 - RARE), "even": np.median(scores), "wrong": np.median(scores)}.get(
        case, 0.5
    )
    made = [
        {"a": rows[n]["a"], "b": rows[n]["b"], "label": "yes" if scores[n] >= bound else "no"}
        | {"no": 1 - scores[n], "yes": scores[n]}
        for n in numbers
    ]
    train, judged = made[: len(made) // 2], made[len(made) // 2 :]
    for row in train if case == "wrong" else ():
        if rng.random() < WRONG:
            row["label"] = {"yes": "no", "no": "yes"}[row["label"]]
    for row in train if case == "between" else ():
        row["label"] = "yes" if rng.random() < row["yes"] else "no"
    return train, judged


def _train(setting: Setting, rows: Rows, seed: int, case: str, option: str, settings: dict[str, Any]) -> None:
    folder, data = setting.scratch / "losses", setting.folder / "labels"
    train, judged = case_rows(rows, case, seed)
    data.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, of_split in (("train", train), ("validation", judged)):
        # Judged by the class, also where probabilities are trained on.
        sure = [row | {"no": float(row["label"] == "no"), "yes": float(row["label"] == "yes")} for row in of_split]
        files[split] = str(data / f"{case}-{seed}-{split}.jsonl")
        written = of_split if split == "train" else sure
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in written))
    task = {"type": "classification", "dataset": "json", "data_files": files, "inputs": ["a", "b"]}
    task |= {"metrics": ["accuracy", "f1"]} | settings
    options = setting.options(
        _mixture(setting, f"losses-{case}-{seed}", {"pairs": task}),
        training__output_dir=folder,
        training__learning_rate=RATE,
        training__seed=seed,
        **{"training__max_steps": 2 if setting.smoke else EPOCHS * NUM_ROWS // 32},
    )

    def trained() -> dict[str, float]:
        shutil.rmtree(folder, ignore_errors=True)
        setting.isolated(clocked.train, options)
        found = json.loads((folder / "metrics.json").read_text())
        return found["tasks"]["pairs"] | {"loss": found["losses"]["pairs"]}

    setting.results.once(f"losses/{seed}/{case}/{option}", trained)


# -- page section -----------------------------------------------------------------------------------------------------


def section(results: Results) -> str:
    """The page's section on labels."""
    parts = [part for part in (_three_labels(results), _losses(results)) if part]
    return "\n\n".join(["## Labels", *parts]) if parts else ""


def _three_labels(results: Results) -> str:
    found = results.rounds("labels", ("one encoding", "three tasks"))
    if not found:
        return ""
    one, three = found["one encoding"], found["three tasks"]
    times = ratios([run["seconds"] for run in one], [run["seconds"] for run in three])
    tokens = ratios([run["tokens"] for run in one], [run["tokens"] for run in three])
    return (
        f"**Three labels on a row**, beside three tasks of the same rows, where each head sees as many rows: a step "
        f"takes {spread(times)} of the time, goal ≤ {GOAL:g}: {verdict(middle(times), GOAL, True)}; it computes "
        f"{spread(tokens)} of the tokens."
    )


def _losses(results: Results) -> str:
    found = results.under("losses")
    seeds = sorted({int(name.split("/")[0]) for name in found})
    rows: list[Sequence[object]] = []
    for option, (_, *cases, metric) in LOSSES.items():
        scale, digits = (1, 3) if metric == "loss" else (100, 1)
        for case in cases:
            pairs = [[found.get(f"{seed}/{case}/{which}") for which in ("plain", option)] for seed in seeds]
            pairs = [pair for pair in pairs if None not in pair]
            if pairs:
                without, with_it = ([scale * run[metric] for run in side] for side in zip(*pairs, strict=True))
                change = [after - before for before, after in zip(without, with_it, strict=True)]
                losses = [f"{mean(run['loss'] for run in side):.3f}" for side in zip(*pairs, strict=True)]
                cells = [f"`{option}`" if ":" in option else option, CASES[case], metric]
                cells += [mean_and_deviation(values, digits) for values in (without, with_it, change)]
                cells += losses
                rows.append([*cells, len(pairs)])
    if not rows:
        return ""
    head = ["", "rows", "metric", "without", "with", "change", "loss without", "loss with", "seeds"]
    return (
        f"**Losses**, each on rows where it helps and on rows where it does not. Two classes are made of the "
        f"number of the first task, {NUM_ROWS:,} rows to train on, {EPOCHS} passes, learning rate {RATE:g}; "
        f"metrics in points of 100 and the plain loss, both on rows whose labels are right; mean ± deviation of "
        f"seeds:\n\n" + table(head, rows)
    )
