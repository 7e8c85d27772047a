"""Loss balancing: each method against its paper's formulas, and what a step promises with each of them."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import MORE_TASKS, TASKS
from torch.nn import functional as F

from multitask.balancing import Famo, LossBalancing, Static, Uncertainty, build_balancing
from multitask.model import MultitaskModel
from multitask.optim import LOG_VARIANCE_RATE, build_optimizer

WEIGHTS = {"a": 1.0, "b": 1.0}
TARGETS = {"a": torch.tensor([1.0, 3.0, -2.0]), "b": torch.tensor([20.0, 40.0])}


def never():
    raise AssertionError("no loss is to be measured")


class Toy:
    """Two tasks of three and two examples that share one number; task t predicts scale_t * number."""

    def __init__(self, start=0.5):
        self.number = torch.tensor(start, requires_grad=True)

    def example_losses(self):
        return {"a": (self.number - TARGETS["a"]) ** 2, "b": (5 * self.number - TARGETS["b"]) ** 2}

    def sums(self):
        return {task: losses.sum() for task, losses in self.example_losses().items()}

    def measured(self):
        with torch.no_grad():
            return torch.stack(list(self.sums().values()))


ROWS = {"a": 3, "b": 2}


# -- static, size_of_label_space ---------------------------------------------------------------------------------------


def test_static_is_the_configured_weight():
    toy, static = Toy(), Static({"a": 2.0, "b": 0.5}, 5)
    static.begin(ROWS, 2, never)
    a, b = (losses.sum() for losses in toy.example_losses().values())
    assert [term.item() for term in static.terms(toy.sums(), ROWS)] == pytest.approx([2 * a.item() / 5, b.item() / 10])
    static.end(never)
    assert (static.values(), static.state()) == ({}, {})


def test_losses_are_divided_by_the_logarithm_of_the_number_of_classes(make):
    """A model that knows nothing has the same loss of 1 on each task but the regression."""
    _, tasks, _ = make("bert", (*TASKS, *MORE_TASKS))
    balancing = build_balancing("size_of_label_space", None, tasks, 6, never)
    assert type(balancing) is LossBalancing
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
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1, 1, pytest.approx(LOG_VARIANCE_RATE / 1e-5)]
    assert optimizer.param_groups[2]["params"] == [model.log_variance("a"), model.log_variance("b")]
    for group in optimizer.param_groups:
        group["lr"] = 1e-5 * group["lr_scale"]
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
        famo.begin(ROWS, 1 + step % 2, toy.measured)  # with several passes the losses are measured before
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
        famo.end(toy.measured)
        np.testing.assert_allclose(famo.logits, logits.detach().numpy(), rtol=1e-3, atol=1e-6)
    assert abs(famo.logits[0]) > 0.05


def test_famo_favours_what_falls_least():
    toy, famo = Toy(start=2.0), Famo(WEIGHTS, 5, lambda sums: sums)
    famo.begin(ROWS, 1, never)
    famo.terms(toy.sums(), ROWS)
    with torch.no_grad():
        toy.number += 0.1  # towards 6, which is b's optimum, away from a's
    famo.end(toy.measured)
    assert famo.logits[0] > 0 > famo.logits[1]


def test_famo_leaves_an_idle_task_alone():
    famo = Famo({"a": 1.0, "idle": 1.0, "b": 2.0}, 5, lambda sums: sums)
    famo.load_state({"logits": [0.3, 0.9, -0.2], "mean": [0.1, 0.2, 0.3], "square": [0.5] * 3, "updates": [4, 2, 4]})
    sums = {"a": torch.tensor(6.0), "idle": torch.tensor(0.0), "b": torch.tensor(1.0)}
    famo.begin({"a": 3, "idle": 0, "b": 2}, 1, never)
    terms = famo.terms(sums, {})
    z = np.exp([0.3, -0.2]) / np.exp([0.3, -0.2]).sum()  # among those that are there
    q = z / [2.0, 0.5] / (z / [2.0, 0.5]).sum()
    assert [term.item() for term in terms] == pytest.approx([q[0] * 2.0, 0.0, 2 * q[1] * 0.5])
    famo.end(lambda: torch.tensor([5.0, 0.0, 0.9]))
    state = famo.state()
    assert [state[name][1] for name in ("logits", "mean", "square", "updates")] == [0.9, 0.2, 0.5, 2]
    assert state["updates"] == [5, 2, 5] and state["logits"][0] != 0.3 and state["logits"][2] != -0.2


def test_famo_does_not_take_rounding_for_a_change():
    toy, famo = Toy(), Famo(WEIGHTS, 5, lambda sums: sums)
    famo.begin(ROWS, 1, never)
    famo.terms(toy.sums(), ROWS)
    famo.end(lambda: toy.measured() * (1 + 1e-7))
    assert famo.logits.tolist() == [0, 0]
    famo.end(lambda: toy.measured() * torch.nan)
    assert famo.logits.tolist() == [0, 0]


def test_famo_goes_on_bit_for_bit():
    """Out of JSON, in the middle."""

    def steps(famo, numbers):
        for number in numbers:
            famo.begin(ROWS, 1, never)
            famo.terms(Toy(number).sums(), ROWS)
            famo.end(Toy(number * 1.01).measured)
        return famo

    numbers = [0.1 * n for n in range(1, 9)]
    whole = steps(Famo(WEIGHTS, 5, lambda sums: sums), numbers)
    first = steps(Famo(WEIGHTS, 5, lambda sums: sums), numbers[:5])
    second = Famo(WEIGHTS, 5, lambda sums: sums)
    second.load_state(json.loads(json.dumps(first.state())))
    assert steps(second, numbers[5:]).state() == whole.state()


def test_methods_by_name(make):
    model, tasks, _ = make("bert")
    made = {method: type(build_balancing(method, model, tasks, 6, never)) for method in ("static", "famo")}
    assert made == {"static": Static, "famo": Famo}
    balancing = build_balancing("uncertainty", model, tasks, 6, never)
    assert isinstance(balancing, Uncertainty) and balancing.scales == {"similar": 0.5, "animal": 1.0, "choice": 1.0}
