"""Times the real training loop.

`run_multitask.train` calls a stop function once per step; here that function records the time, and stops the run after
the requested number of steps. The loop itself is unchanged.

As a program, to measure from the command on, or several processes:

    BENCH_STARTED=$(date +%s.%N) python -m benchmarks.clocked RESULT.json STEPS --config configs/glue_csqa.yaml …
"""

import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def train(
    options: list[str],
    num_steps: int | None = None,
    num_threads: int | None = None,
    after_step: Callable[[int], bool] = lambda step: False,
) -> dict[str, Any]:
    """Trains as `run_multitask.py` does.

    Args:
        options: its command line.
        num_steps: stop, and save, after so many; None goes on to the end.
        num_threads: of PyTorch; None leaves its own choice.
        after_step: gets the number of steps so far; true stops the run.

    Returns:
        `marks`, the `time.time` in seconds at which each step's gradients were complete; `first_step`, the time of the
        first call of the model, or None; `peak_bytes` and `peak_gpu_bytes` of this process; the exit `status`.
    """
    import torch

    import run_multitask
    from multitask.model.multitask import MultitaskModel
    from multitask.training.distributed import start_accelerator

    if num_threads:
        torch.set_num_threads(num_threads)
    marks: list[float] = []
    calls: list[float] = []

    def stop_signal() -> int:
        is_last = after_step(len(marks) + 1)
        marks.append(time.time())
        return signal.SIGTERM if is_last or (num_steps and len(marks) >= num_steps) else 0

    def note_first_call(module: torch.nn.Module, args: Any) -> None:
        if isinstance(module, MultitaskModel):
            calls.append(time.time())
            hook.remove()

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note_first_call)
    command = run_multitask.read_command(options)
    status = run_multitask.train(command, start_accelerator(), stop_signal)
    return {
        "marks": marks[:num_steps],
        "first_step": calls[0] if calls else None,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "status": status,
    }


def train_anew(options: list[str], folder: Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """`train` in a new folder, which is deleted afterwards; with the numbers that the run has logged as `logged`."""
    shutil.rmtree(folder, ignore_errors=True)
    measured = train([*options, "--training.output_dir", str(folder)], *args, **kwargs)
    numbers = folder / "metrics.jsonl"
    lines = numbers.read_text().splitlines() if numbers.exists() else []
    shutil.rmtree(folder)
    return measured | {"logged": [json.loads(line) for line in lines]}


def counted_seconds(run: dict[str, Any], warmup_steps: int) -> float:
    """The time from the end of the warm-up to the last step of a run measured by `train`."""
    return run["marks"][-1] - run["marks"][warmup_steps - 1]


def read(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Reads and deletes the result files of clocked programs, one per process."""
    files = sorted(folder.glob(pattern))
    runs = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return runs


def main() -> None:
    begun = time.time()
    result, num_steps, *options = sys.argv[1:]
    importlib.import_module("run_multitask")  # with all of its imports
    imported = time.time()
    measured = train(options, int(num_steps) or None)
    started = float(os.environ.get("BENCH_STARTED", begun))
    measured |= {"started": started, "imported": imported, "rank": int(os.environ.get("RANK", 0))}
    Path(f"{result}.{measured['rank']}").write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
