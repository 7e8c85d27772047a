"""Loss balancing: each method against its paper's formulas, and what a step promises with each of them."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.lanes import fast_if
from helpers.runs import assert_same_curve, assert_same_run, assert_same_weight, weights
from helpers.tasks import MORE_TASKS, TASKS, read_jsonl
from safetensors.torch import load_file
from torch.nn import functional as F

import run_multitask
from multitask.checkpoints.manifest import checkpoints_in
from multitask.cli.arguments import read_command
from multitask.cli.commands import OTHER_MODES
from multitask.model.multitask import MultitaskModel
from multitask.training.loss_weighting import Famo, LossWeighting, Static, Uncertainty, build_loss_weighting
from multitask.training.optimizer import LOG_VARIANCE_RATE, build_optimizer
from multitask.training.state import SavedState

WEIGHTS = {"a": 1.0, "b": 1.0}
TARGETS = {"a": torch.tensor([1.0, 3.0, -2.0]), "b": torch.tensor([20.0, 40.0])}


@pytest.fixture
def run(stoppable, mixture_config):
    mixture_config["training"] |= {"max_steps": 8, "eval_steps": 3, "save_steps": 3, "logging_steps": 2}
    return stoppable


def never(*_):
    raise AssertionError("no loss is to be measured")


class Toy:
    """Two tasks of three and two examples that share one number; task t predicts scale_t * number."""

    def __init__(self, start=0.5):
        self.number = torch.tensor(start, requires_grad=True)

    def example_losses(self):
        return {"a": (self.number - TARGETS["a"]) ** 2, "b": (5 * self.number - TARGETS["b"]) ** 2}

    def sums(self):
        return {task: losses.sum() for task, losses in self.example_losses().items()}

    def in_passes(self, number):
        def pass_losses(index):
            assert not torch.is_grad_enabled()
            return {task: losses[index::number].sum() for task, losses in self.example_losses().items()}

        return pass_losses


ROWS = {"a": 3, "b": 2}


# -- static, size_of_label_space ---------------------------------------------------------------------------------------


def test_static_is_the_configured_weight():
    toy, static = Toy(), Static({"a": 2.0, "b": 0.5}, 5)
    static.begin(ROWS, 2, never)
    a, b = (losses.sum() for losses in toy.example_losses().values())
    assert [term.item() for term in static.terms(toy.sums(), ROWS)] == pytest.approx([2 * a.item() / 5, b.item() / 10])
    static.end()
    assert (static.values(), static.state_dict()) == ({}, {})


def test_losses_are_divided_by_the_logarithm_of_the_number_of_classes(make):
    """A model that knows nothing has the same loss of 1 on each task but the regression."""
    _, tasks, _ = make("bert", (*TASKS, *MORE_TASKS))
    balancing = build_loss_weighting("size_of_label_space", None, tasks, 6, never)
    assert type(balancing) is LossWeighting
    positions = math.exp(np.log(tasks[5].train.length).mean())
    assert 20 < positions < 64
    numbers = {"animal": 2, "choice": 3, "topics": 2, "tags": 2, "find": positions}
    expected = {"similar": 1.0} | {task: 1 / math.log(n) for task, n in numbers.items()}
    assert balancing.factors == pytest.approx(expected)
    assert balancing.values() == pytest.approx({f"train/{t}/loss_weight": factor for t, factor in expected.items()})
    for task in tasks[1:4]:
        labels = torch.zeros(1, 3) if task.name == "topics" else torch.zeros(1, dtype=torch.int64)
        ignorant = task.type.loss(torch.zeros(1, 3 if task.name != "animal" else 2), labels)
        assert balancing.factors[task.name] * ignorant.item() == pytest.approx(1.0)


# -- uncertainty -------------------------------------------------------------------------------------------------------


def uncertain(tasks=WEIGHTS):
    model = MultitaskModel()
    model.tasks.update({task: torch.nn.Linear(1, 1) for task in tasks})
    model.add_log_variances()
    return model


def test_uncertainty_is_the_formula_of_the_paper():
    """Equation 10 of Kendall et al.: L1 / (2 sigma1^2) + L2 / sigma2^2 + log sigma1 + log sigma2, a mean over examples."""
    model, toy = uncertain(), Toy()
    balancing = Uncertainty({"a": 1.0, "b": 3.0}, 5, model, regressions={"a"})
    sigma = {"a": 0.7, "b": 4.0}
    with torch.no_grad():
        for task, value in sigma.items():
            model.log_variance(task).fill_(math.log(value**2))
    balancing.begin(ROWS, 1, never)
    sum(balancing.terms(toy.sums(), ROWS)).backward()

    number = torch.tensor(0.5, requires_grad=True)
    sigmas = {task: torch.tensor(value, requires_grad=True) for task, value in sigma.items()}
    of_a = (number - TARGETS["a"]) ** 2 / (2 * sigmas["a"] ** 2) + sigmas["a"].log()
    of_b = (5 * number - TARGETS["b"]) ** 2 / sigmas["b"] ** 2 + sigmas["b"].log()
    loss = (of_a.sum() + 3 * of_b.sum()) / 5
    loss.backward()
    assert sum(term.item() for term in balancing.terms(toy.sums(), ROWS)) == pytest.approx(loss.item(), rel=1e-6)
    assert toy.number.grad == pytest.approx(number.grad)
    for task, value in sigmas.items():  # d/ds = sigma / 2 * d/dsigma
        assert model.log_variance(task).grad.item() == pytest.approx(value.grad.item() * sigma[task] / 2, rel=1e-5)
    assert balancing.values() == pytest.approx(
        {"train/a/loss_weight": 1 / (2 * 0.7**2), "train/b/loss_weight": 3 / 4.0**2}
    )


def test_uncertainty_of_parts_adds_up_and_of_no_rows_is_zero():
    toy, gradients = Toy(), []
    for parts in ([{"a": [0, 1, 2], "b": [0, 1]}], [{"a": [0], "b": [0, 1]}, {"a": [1, 2], "b": []}]):
        model = uncertain()
        balancing = Uncertainty(WEIGHTS, 5, model, {"a"})
        for part in parts:
            sums = {task: toy.example_losses()[task][rows].sum() for task, rows in part.items()}
            sum(balancing.terms(sums, {task: len(rows) for task, rows in part.items()})).backward()
        gradients.append([model.log_variance(task).grad.item() for task in WEIGHTS])
    assert gradients[0] == pytest.approx(gradients[1])
    model = uncertain()
    sum(Uncertainty(WEIGHTS, 5, model, {"a"}).terms({"a": torch.tensor(0.0)}, {"a": 0})).backward()
    assert model.log_variance("a").grad.item() == 0


def test_uncertainty_learns_the_variance():
    """The minimum: sigma^2 of a regression is its mean squared error; without decay, at a rate of its own."""
    model = uncertain()
    optimizer = build_optimizer(model, 1e-5, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0, 0.0]
    assert [group["scale"] for group in optimizer.param_groups] == [1, 1, pytest.approx(LOG_VARIANCE_RATE / 1e-5)]
    assert optimizer.param_groups[2]["params"] == [model.log_variance("a"), model.log_variance("b")]
    for group in optimizer.param_groups:
        group["lr"] = 1e-5 * group["scale"]
    balancing = Uncertainty(WEIGHTS, 5, model, {"a", "b"})
    sums = {task: torch.tensor(variance * ROWS[task]) for task, variance in (("a", 0.25), ("b", 7.0))}
    for _ in range(900):
        optimizer.zero_grad()
        sum(balancing.terms(sums, ROWS)).backward()
        optimizer.step()
    learned = [model.log_variance(task).exp().item() for task in WEIGHTS]
    assert learned == pytest.approx([0.25, 7.0], rel=0.02)


# -- famo --------------------------------------------------------------------------------------------------------------


def test_famo_is_the_algorithm_of_the_paper():
    """Algorithm 1 of Liu et al. recomputed with PyTorch's softmax, autograd and Adam over ten steps of both tasks."""
    toy, famo = Toy(), Famo(WEIGHTS, 5, lambda sums: sums, rate=0.025, decay=0.001)
    number = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=0.001)

    def means():
        return torch.stack([((number - TARGETS["a"]) ** 2).mean(), ((5 * number - TARGETS["b"]) ** 2).mean()])

    for step in range(10):
        # z = softmax(logits); the gradient of the shared weights is sum_i c z_i / l_i * grad l_i, c = 1 / sum_i z_i / l_i
        losses, z = means(), F.softmax(logits, dim=-1)
        c = 1 / (z / losses).sum().detach()
        weighted = (c * z.detach() / losses.detach() * losses).sum()
        (expected,) = torch.autograd.grad(weighted, number)
        famo.begin(ROWS, 1 + step % 2, toy.in_passes(1 + step % 2))
        loss = sum(famo.terms(toy.sums(), ROWS))
        (gradient,) = torch.autograd.grad(loss, toy.number)
        assert gradient.item() == pytest.approx(expected.item(), rel=1e-5)
        assert loss.item() == pytest.approx(weighted.item(), rel=1e-5)
        share = c * z.detach() / losses.detach()  # of mean losses; a factor is of examples' losses over all five
        assert list(famo.factors.values()) == pytest.approx(
            [share[0].item() * 5 / 3, share[1].item() * 5 / 2], rel=1e-5
        )

        # the logits follow their gradient of z * (log l - log l'), which Adam sums up with the decay
        with torch.no_grad():
            number -= 0.01 * expected
            toy.number.copy_(number)
        fallen = losses.detach().log() - means().detach().log()
        adam.zero_grad()
        (F.softmax(logits, dim=-1) * fallen).sum().backward()
        adam.step()
        famo.end()
        np.testing.assert_allclose(famo.logits, logits.detach().numpy(), rtol=1e-3, atol=1e-6)
    assert abs(famo.logits[0]) > 0.05


def test_famo_favours_what_falls_least():
    toy, famo = Toy(start=2.0), Famo(WEIGHTS, 5, lambda sums: sums)
    famo.begin(ROWS, 1, toy.in_passes(1))
    famo.terms(toy.sums(), ROWS)
    with torch.no_grad():
        toy.number += 0.1  # towards 6, which is b's optimum, away from a's
    famo.end()
    assert famo.logits[0] > 0 > famo.logits[1]


def test_famo_leaves_an_idle_task_alone():
    famo = Famo({"a": 1.0, "idle": 1.0, "b": 2.0}, 5, lambda sums: sums)
    famo.load_state_dict(
        {"logits": [0.3, 0.9, -0.2], "mean": [0.1, 0.2, 0.3], "square": [0.5] * 3, "updates": [4, 2, 4]}
    )
    sums = {"a": torch.tensor(6.0), "idle": torch.tensor(0.0), "b": torch.tensor(1.0)}
    after = {"a": torch.tensor(5.0), "idle": torch.tensor(0.0), "b": torch.tensor(0.9)}
    famo.begin({"a": 3, "idle": 0, "b": 2}, 1, lambda index: after)
    terms = famo.terms(sums, {})
    z = np.exp([0.3, -0.2]) / np.exp([0.3, -0.2]).sum()  # among those that are there
    q = z / [2.0, 0.5] / (z / [2.0, 0.5]).sum()
    assert [term.item() for term in terms] == pytest.approx([q[0] * 2.0, 0.0, 2 * q[1] * 0.5])
    assert set(famo.values()) == {"train/a/loss_weight", "train/b/loss_weight"}
    famo.end()
    state = famo.state_dict()
    assert [state[name][1] for name in ("logits", "mean", "square", "updates")] == [0.9, 0.2, 0.5, 2]
    assert state["updates"] == [5, 2, 5] and state["logits"][0] != 0.3 and state["logits"][2] != -0.2


def test_famo_does_not_take_rounding_for_a_change():
    sums = Toy().sums()
    for factor in (1 + 1e-7, torch.nan):
        famo = Famo(WEIGHTS, 5, lambda sums: sums)
        famo.begin(ROWS, 1, lambda _, factor=factor: {task: total * factor for task, total in sums.items()})
        famo.terms(sums, ROWS)
        famo.end()
        assert famo.logits.tolist() == [0, 0]


def test_famo_goes_on_bit_for_bit():
    """Out of JSON, in the middle."""

    def steps(famo, numbers):
        for number in numbers:
            famo.begin(ROWS, 1, Toy(number * 1.01).in_passes(1))
            famo.terms(Toy(number).sums(), ROWS)
            famo.end()
        return famo

    numbers = [0.1 * n for n in range(1, 9)]
    whole = steps(Famo(WEIGHTS, 5, lambda sums: sums), numbers)
    first = steps(Famo(WEIGHTS, 5, lambda sums: sums), numbers[:5])
    second = Famo(WEIGHTS, 5, lambda sums: sums)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert steps(second, numbers[5:]).state_dict() == whole.state_dict()


def test_methods_by_name(make):
    model, tasks, _ = make("bert")
    made = {method: type(build_loss_weighting(method, model, tasks, 6, never)) for method in ("static", "famo")}
    assert made == {"static": Static, "famo": Famo}
    balancing = build_loss_weighting("uncertainty", model, tasks, 6, never)
    assert isinstance(balancing, Uncertainty) and balancing.scales == {"similar": 0.5, "animal": 1.0, "choice": 1.0}


# -- what a step promises, with each method and with measuring whether the tasks agree ----------------------------------

METHODS = ("size_of_label_space", "uncertainty", "famo")
# One task is absent in some steps, has several passes in others; the agreement is measured in every second step.
UNEVEN = {"sampling": "weights", "weights": {"similar": 0.06, "animal": 0.34, "choice": 0.6}}
OPTIONS = ["--training.batch_size", "11", "--training.max_steps", "8", "--training.agreement_steps", "2"]


def logged(folder, kind):
    """The lines of metrics.jsonl that have values of a kind, with these alone."""
    lines = read_jsonl(folder / "metrics.jsonl")
    found = [{k: v for k, v in line.items() if kind in k or k == "step"} for line in lines]
    return [line for line in found if len(line) > 1]


def assert_same_numbers(one, other):
    assert_same_curve(one, other)
    for kind in ("agreement/", "/loss_weight"):
        for first, second in zip(logged(one, kind), logged(other, kind), strict=True):
            assert first == pytest.approx(second, rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["static", "uncertainty", "famo"])  # size_of_label_space is static with factors
def test_passes_and_processes_make_no_difference(mixture_config, write_config, train, program, tmp_path, method):
    mixture_config["mixture"] = UNEVEN
    options = [*OPTIONS, "--training.loss_balancing", method]
    one = train(*options)
    several = train(
        *options, "--training.max_tokens_per_pass", "90", "--training.output_dir", str(tmp_path / "several")
    )
    two = tmp_path / "two"
    config = ["--config", write_config(mixture_config), "--training.output_dir", str(two)]
    done = program(*config, *options, "--training.max_tokens_per_pass", "150", processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_numbers(one, several)
    assert_same_numbers(one, two)
    after, after_two = weights(one), weights(two)
    for name in after:
        assert_same_weight(name, after[name], after_two[name])

    agreed = logged(one, "agreement/")
    assert [line["step"] for line in agreed] == [2, 4, 6, 8]
    similar = [line["train/similar/examples"] for line in logged(one, "/examples")]
    there = [step for step in (2, 4, 6, 8) if similar[step - 1] > similar[step - 2]]
    assert 0 < len(there) < 4
    assert [line["step"] for line in agreed if "agreement/similar/choice" in line] == there
    assert all("agreement/layer_1/animal/choice" in line for line in agreed)
    counted = logged(one, "/loss_weight")
    assert len({line["train/choice/loss_weight"] for line in counted}) == (0 if method == "static" else 8)


@pytest.mark.slow
def test_two_processes_in_bfloat16(mixture_config, write_config, program, tmp_path):
    config = ["--config", write_config(mixture_config), *OPTIONS, "--training.max_steps", "3"]
    config += ["--training.loss_balancing", "famo", "--training.max_tokens_per_pass", "200"]
    for processes in (1, 2):
        folder = ["--training.output_dir", str(tmp_path / f"{processes}")]
        done = program(*config, *folder, processes=processes, ACCELERATE_MIXED_PRECISION="bf16")
        assert done.returncode == 0, done.stderr
    for kind, number in (("agreement/", 13), ("/loss_weight", 3)):
        for one, two in zip(logged(tmp_path / "1", kind), logged(tmp_path / "2", kind), strict=True):
            # Rounded to 2^-9 = 0.002 in each process; embeddings, and choices that are alike, are small differences.
            assert len(one) == number + 1 and one == pytest.approx(two, abs=0.03)
    assert [line["step"] for line in logged(tmp_path / "2", "agreement/")] == [2]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["static", *METHODS])
def test_stopped_and_resumed_is_never_stopped(run, mixture_config, tmp_path, method):
    mixture_config["mixture"] = UNEVEN
    options = ["--training.loss_balancing", method, "--training.agreement_steps", "2"]
    options += ["--training.max_tokens_per_pass", "150"]
    assert run("whole", *options) == 0
    assert run("parts", *options, stop_at=3) == 143
    assert run("parts", *options, stop_at=3) == 143
    assert run("parts", *options) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    states = [SavedState.read(checkpoints_in(tmp_path / name)[0]).balancing for name in ("whole", "parts")]
    assert states[0] == states[1] and bool(states[0]) == (method == "famo")


def test_measuring_changes_a_run_by_rounding_alone(train, tmp_path):
    measured = train("--training.agreement_steps", "1")
    assert_same_curve(measured, train("--training.output_dir", str(tmp_path / "not")))
    assert len(logged(measured, "agreement/")) == 6 and logged(tmp_path / "not", "agreement/") == []


@pytest.mark.parametrize("method", fast_if(["uncertainty"], METHODS))
def test_balancing_makes_another_run(train, tmp_path, method):
    static = train("--training.max_steps", "3")
    other = train(
        "--training.max_steps", "3", "--training.loss_balancing", method, "--training.output_dir", str(tmp_path / "b")
    )
    first, second = weights(static), weights(other)
    head = [name for name in first if name.startswith("animal.classifier")]
    assert len(head) == 2 and not any(torch.equal(first[name], second[name]) for name in head)


def test_uncertainty_is_in_the_checkpoint_and_not_in_the_exports(train, tmp_path):
    """Also evaluated and exported again from there; an idle task's variance stays where it began."""
    sampling = ["--mixture.sampling", "weights", "--mixture.weights", "{similar: 1, animal: 0, choice: 1}"]
    folder = train("--training.loss_balancing", "uncertainty", *sampling)
    checkpoint = checkpoints_in(folder)[0]
    learned = {
        name: tensor.item()
        for name, tensor in load_file(checkpoint / "model.safetensors").items()
        if "variance" in name
    }
    assert list(learned) == [f"log_variances.{task}.0" for task in sorted(TASKS)]
    assert learned["log_variances.animal.0"] == 0 != learned["log_variances.similar.0"]
    assert not any("variance" in name for name in weights(folder))
    for mode, output in (("evaluate", "numbers.json"), ("export", "models")):
        arguments = ["--mode", mode, "--checkpoint", str(folder), "--output", str(tmp_path / output)]
        OTHER_MODES[mode](read_command(arguments), run_multitask.Accelerator(cpu=True))
    of_run = json.loads((folder / "metrics.json").read_text())
    of_run.pop("run_seconds")
    assert json.loads((tmp_path / "numbers.json").read_text()) == of_run
    for task in TASKS:
        name = f"{task}/model.safetensors"
        assert (tmp_path / "models" / name).read_bytes() == (folder / "export" / name).read_bytes()
