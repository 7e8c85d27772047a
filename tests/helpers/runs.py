"""Runs in processes of their own, and what two runs are compared by."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from multitask.checkpoints.manifest import checkpoints_in

from .paths import ROOT
from .tasks import read_jsonl

TIMING = {
    "time",
    "train/tokens_per_second",
    "train/elapsed_seconds",
    "train/remaining_seconds",
    "eval/seconds",
    "checkpoint/seconds",
    "checkpoint/upload_seconds",
}


def curve(folder: Path) -> np.ndarray:
    """Loss and gradient norm at every step."""
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)) and lines
    return np.array([[line["train/loss"], line["train/grad_norm"]] for line in lines])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All exported parameters by task and name."""
    found = {}
    for task in sorted((folder / "export").iterdir()):
        auto = "MultipleChoice" if task.name == "choice" else "SequenceClassification"
        model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(task)
        found |= {f"{task.name}.{name}": p.detach() for name, p in model.named_parameters()}
    return found


# Sums over the same examples in another order: differences stay at the rounding of float32 (2^-24 = 6e-8 relative),
# grown by the optimizer over a few steps. A missing or doubled example would be off by about 1/12 of the loss.
def assert_same_curve(first: Path, second: Path) -> None:
    assert_close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(curve(first), curve(second), **assert_close)
    np.testing.assert_allclose(curve(first)[:2], curve(second)[:2], rtol=1e-5)


def assert_same_weight(name: str, first: torch.Tensor, second: torch.Tensor) -> None:
    # Softmax sees no constant, so these have no gradient but rounding, which AdamW scales up to full steps.
    if not name.endswith(("key.bias", "choice.classifier.bias")):
        # Steps of at most 1e-3 each; where a gradient is about nil, AdamW turns its rounding into a part of one.
        torch.testing.assert_close(first, second, rtol=0, atol=3e-4)
        assert (first - second).abs().mean() < 2e-5


def numbers(folder: Path) -> list[dict]:
    """All that was logged, but for what a clock says and when a checkpoint was written."""
    lines = [
        {key: value for key, value in line.items() if key not in TIMING}
        for line in read_jsonl(folder / "metrics.jsonl")
    ]
    return [line for line in lines if set(line) != {"step"}]


def assert_same_run(first: Path, second: Path) -> None:
    assert numbers(first) == numbers(second)
    last = [json.loads((folder / "metrics.json").read_text()) for folder in (first, second)]
    assert all(of_run.pop("run_seconds") > 0 for of_run in last) and last[0] == last[1]
    one, two = checkpoints_in(first)[0], checkpoints_in(second)[0]
    assert one.name == two.name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    tasks, others = (sorted(path.name for path in (folder / "export").iterdir()) for folder in (first, second))
    assert tasks == others and len(tasks) >= 3
    for task in tasks:
        path = Path("export", task, "model.safetensors")
        assert (first / path).read_bytes() == (second / path).read_bytes()


def start(config: str, folder: Path, *options: str, processes: int = 1) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *torchrun, str(ROOT / "run_multitask.py"), "--config", config]
    command += ["--training.output_dir", str(folder), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has logged a step."""
    for _ in range(600):
        path = folder / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the run does not come on")


def damage(kind: str, checkpoint: Path) -> str:
    """Harms a checkpoint; gives what is said of it."""
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if kind == "flipped":
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
        return f"{weights} is damaged: its CRC32C is"
    if kind == "short":
        weights.write_bytes(content[:-1])
        return f"{weights} has {len(content) - 1} bytes, not {len(content)}"
    if kind == "missing":
        weights.unlink()
        return f"{weights} is missing"
    (checkpoint / "manifest.json").write_text('{"step": 6')
    return f"{checkpoint / 'manifest.json'} is damaged: it is not a manifest"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def losses_and_norms(folder: Path) -> np.ndarray:
    """Losses of all tasks and gradient norms, step by step."""
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if "train/loss" in line]
    return np.array([line[name] for line in lines for name in sorted(line) if name.endswith(("/loss", "/grad_norm"))])
