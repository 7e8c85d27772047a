"""Work beside the training: one piece at a time, and no error is lost."""

import threading

import pytest
import torch

from multitask.checkpoints.format import take_snapshot
from multitask.checkpoints.manager import Background
from multitask.training.state import SavedState


def test_one_piece_of_work_at_a_time():
    background, gate, done = Background(), threading.Event(), []
    background.start(lambda: (gate.wait(30), done.append("first")))
    assert done == []  # the caller goes on
    threading.Timer(0.1, gate.set).start()
    background.start(lambda: done.append("second"))
    background.wait()
    assert done == ["first", "second"]


@pytest.mark.parametrize("when", ["at the next", "at the end"])
def test_an_error_comes_out(when):
    background = Background()
    background.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.start(lambda: None) if when == "at the next" else background.wait()
    background.wait()  # once


def test_the_process_waits_for_it(tmp_path):
    background, gate = Background(), threading.Event()
    background.start(lambda: gate.wait(30))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "background"]
    assert not thread.daemon
    gate.set()
    background.wait()
    assert not thread.is_alive()


def test_a_snapshot_stays_as_it_was(make):
    """Training goes on while it is written."""
    model, _, tokenizer = make("bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state, numbers = SavedState(step=1, best={"step": 1}), []
    snapshot = take_snapshot(model, optimizer, tokenizer, "config", state, numbers)
    before = [{name: tensor.clone() for name, tensor in of.items()} for of in (snapshot.weights, snapshot.optimizer)]
    text = snapshot.files["state.json"]
    optimizer.step()
    state.best["step"] = 2
    assert snapshot.files["state.json"] == text
    for then, now in zip(before, (snapshot.weights, snapshot.optimizer), strict=True):
        assert then and all(torch.equal(then[name], now[name]) for name in then)
    now = dict(model.named_parameters())
    assert not any(torch.equal(before[0][name], now[name]) for name in before[0])
