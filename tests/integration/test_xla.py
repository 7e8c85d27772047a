"""On XLA, compiled for the CPU: `make test-xla`, in an environment of its own with torch_xla."""

import numpy as np
import pytest

pytest.importorskip("torch_xla", reason="torch_xla is not installed here; make test-xla brings its own")

import torch_xla.debug.metrics as met
from helpers.runs import losses_and_norms

import run_multitask
from multitask.cli.arguments import read_command
from multitask.training.distributed import start_accelerator


@pytest.mark.parametrize("options", [[], ["--adapters.rank", "2"]], ids=["whole", "lora"])
def test_numbers_are_those_without_xla_and_graphs_are_few(
    options, mixture_config, write_config, program, tmp_path, monkeypatch
):
    """Some steps have two passes of a task, every other one has none of `animal`, and some gradients are clipped.

    Checkpoints are written between evaluations: their weights are read right after an update.
    """
    mixture_config["training"] |= {"max_steps": 10, "batch_size": 4, "max_tokens_per_pass": 100, "max_grad_norm": 0.5}
    mixture_config["training"]["save_steps"] = 3
    mixture_config["mixture"] = {"sampling": "weights", "weights": {"similar": 3, "animal": 1, "choice": 4}}
    options = ["--config", write_config(mixture_config), *options]

    compilations: list[int] = []  # so far, at the end of each step
    add = run_multitask.LogWindow.add

    def count(window, *values) -> None:
        compilations.append(met.metric_data("CompileTime")[0])
        add(window, *values)

    monkeypatch.setattr(run_multitask.LogWindow, "add", count)
    met.clear_all()
    accelerator = start_accelerator()
    assert accelerator.device.type == "xla"
    run_multitask.train(read_command(options), accelerator)

    # Accelerate's own switch. On the CPU that it then finds, batches have their usual shapes.
    done = program(*options, "--training.output_dir", str(tmp_path / "cpu"), fresh=True, USE_TORCH_XLA="false")
    assert done.returncode == 0 and "static shapes" not in done.stdout, done.stderr
    np.testing.assert_allclose(losses_and_norms(tmp_path / "run"), losses_and_norms(tmp_path / "cpu"), rtol=1e-5)

    print(f"compilations so far, step by step: {compilations}")
    # All that there are, early. For each of the 5 lengths: whether there is padding (which transformers asks), and a
    # pass with and one without. Besides: 3 before the first step, the exchange of the losses, the gradients' norm with
    # and without an idle task, and the update so as well, and the first one, which makes the optimizer's state.
    assert compilations[-1] == compilations[5] <= 3 * 5 + 9
