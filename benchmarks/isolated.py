"""Runs functions in separate processes, so that one measurement does not affect the next.

The processes are forked from a server that has only imported the libraries, so each starts quickly, with its own
threads, memory and random state.
"""

import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from multitask.errors import UserError

ROOT = Path(__file__).parent.parent
LIBRARIES = ["run_multitask", "benchmarks.contenders"]


class Failed(Exception):
    """A measurement that did not finish; the log holds the traceback."""


def call(log: Path, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function in a separate process and returns its result.

    Args:
        log: file to which its output is appended.
        function: a module-level function; its arguments and result are pickled.

    Raises:
        UserError: if the function raised one.
        Failed: if it raised another exception, or its process ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, log, function, args, kwargs))
    process.start()
    sender.close()
    try:
        outcome, value = receiver.recv()
    except EOFError:
        outcome, value = "failed", "it ended without a word"
    except BaseException:
        process.terminate()
        raise
    process.join()
    if outcome == "mistake":
        raise UserError(value)
    if outcome == "failed":
        raise Failed(f"{function.__module__}.{function.__name__}: {value} (see {log})")
    return value


def command(log: Path, words: list[Any], **environment: str) -> None:
    """Runs a program in this repository's folder and waits for it.

    Args:
        log: file to which its output is appended.
        words: the command line.
        environment: environment variables to set.

    Raises:
        Failed: if its exit status is not 0.
    """
    with log.open("a") as file:
        done = subprocess.run(words, stdout=file, stderr=file, cwd=ROOT, env=os.environ | environment, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, words[:4]))} … ended with status {done.returncode} (see {log})")


def _run(sender: Connection, log: Path, function: Callable[..., Any], args: tuple, kwargs: dict) -> None:
    multiprocessing.set_start_method(
        None, force=True
    )  # restore the default, or DataLoaders in this process would use the forkserver too
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    try:
        sender.send(("done", function(*args, **kwargs)))
    except UserError as mistake:
        sender.send(("mistake", str(mistake)))
    except BaseException as error:
        traceback.print_exc()
        sender.send(("failed", f"{type(error).__name__}: {error}"))
