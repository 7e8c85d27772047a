"""Signals that end a run, noted in this process; what a run does with them is in test_resume.py."""

import os
import signal

import pytest

from multitask.training.signals import caught_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_handlers_come_back(number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with caught_signals() as found:
        assert found() == 0
        os.kill(os.getpid(), number)
        assert found() == number
        # At once, so a launcher's: it passes on what the terminal has sent already.
        os.kill(os.getpid(), signal.SIGTERM)
        assert found() == number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
