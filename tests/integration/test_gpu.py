"""What holds on a GPU: the numbers of the CPU, half precision near them, determinism, resuming; run where there is one."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.runs import curve
from helpers.tasks import ALL_TASKS, MORE_TASKS, packed_of
from safetensors.torch import load_file

import run_multitask
from multitask.cli.arguments import read_command
from multitask.model.attention import packed_attention
from multitask.model.encoder import Method
from multitask.model.lora import add_adapters
from multitask.model.segments import Segments

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
LENGTHS = np.array([5, 1, 9, 5, 3, 9, 30, 64])


@pytest.fixture
def on_gpu(monkeypatch):
    """Within a test, the program computes on the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is false: there is no GPU here")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    return torch.device("cuda")


@pytest.fixture
def train_on(mixture_config, write_config, task_files, tmp_path, monkeypatch):
    """Trains all six types of tasks on a device: `train_on("cuda", "folder", "--key", "value")` gives the folder."""
    for name, task in MORE_TASKS.items():
        mixture_config["tasks"][name] = task | {"dataset": "json", "data_files": dict(task_files[name])}

    def train(device, folder, *options, precision="no", stop_at=None):
        monkeypatch.setenv("ACCELERATE_USE_CPU", str(device == "cpu"))
        looks = iter(range(1, 10**6))
        target = tmp_path / folder
        command = read_command(
            ["--config", write_config(mixture_config), "--training.output_dir", str(target), *options]
        )
        AcceleratorState._reset_state(True)  # one process, several devices and precisions
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        assert accelerator.device.type == device
        run_multitask.train(command, accelerator, lambda: 15 if stop_at and next(looks) >= stop_at else 0)
        return target

    yield train
    AcceleratorState._reset_state(True)


def exported(folder):
    """The weights of every exported model."""
    return {path.parent.name: load_file(path) for path in sorted((folder / "export").glob("*/model.safetensors"))}


def heads(dtype, device, seed, size=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, int(LENGTHS.sum()), size, generator=generator).to(device, dtype).requires_grad_()


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 5e-3)]
)
def test_the_kernels_attend_inside_segments(on_gpu, dtype, tolerance, window):
    bounds = torch.tensor([0, *np.cumsum(LENGTHS).tolist()], dtype=torch.int32)
    results = []
    for device, kind in (("cpu", torch.float32), (on_gpu, dtype)):
        inputs = [heads(kind, device, seed) for seed in range(3)]
        output, _ = packed_attention(
            torch.nn.Identity(), *inputs, None, sliding_window=window, segments=Segments(LENGTHS, bounds.to(device))
        )
        gradients = torch.autograd.grad(output.float().square().sum(), inputs)
        results.append([tensor.float().cpu() for tensor in (output, *gradients)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("scope", ["none", "per_task", "both"])
def test_packed_is_what_grouped_is(make, on_gpu, family, scope):
    model, tasks, _ = make(family, ALL_TASKS, dropout=0.0)
    if scope != "none":
        add_adapters(model, 2, 16.0, scope=scope)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.to(on_gpu)
    batch = packed_of(tasks).inputs
    batch = batch._replace(
        **{name: getattr(batch, name).to(on_gpu) for name in ("input_ids", "position_ids", "cu_seqlens")},
        token_type_ids=None if batch.token_type_ids is None else batch.token_type_ids.to(on_gpu),
    )
    results = []
    for method in (Method.PACKED, Method.GROUPED):
        model.call = model.call._replace(method=method)
        model.zero_grad()
        logits = model(batch)
        sum(of_task.square().mean() for of_task in logits.values()).backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys() and results[0]
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("adapters", [(), ("--adapters.scope", "per_task"), ("--adapters.scope", "both")])
def test_losses_are_those_of_the_cpu(on_gpu, train_on, adapters):
    here, there = (curve(train_on(device, device, *adapters)) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(on_gpu, train_on, precision):
    full = curve(train_on("cuda", "full"))[:, 0]
    half = curve(train_on("cuda", "half", precision=precision))[:, 0]
    np.testing.assert_allclose(half, full, rtol=0.05)
    assert (half != full).any()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_with_full_determinism_a_run_repeats_itself_bit_for_bit(on_gpu, train_on, precision):
    options = ("--training.full_determinism", "true", "--model.dropout", "0.1", "--training.save_steps", "2")
    try:
        once, again = (train_on("cuda", name, *options, precision=precision) for name in ("once", "again"))
        train_on("cuda", "parts", *options, precision=precision, stop_at=3)
        parts = train_on("cuda", "parts", *options, precision=precision)
    finally:
        torch.use_deterministic_algorithms(False)
    for other in (again, parts):
        assert (curve(once) == curve(other)).all()
        first, second = exported(once), exported(other)
        assert first.keys() == second.keys() == ALL_TASKS.keys()
        for task, weights in first.items():
            assert all(torch.equal(weight, second[task][name]) for name, weight in weights.items()), task
