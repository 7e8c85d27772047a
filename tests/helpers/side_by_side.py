"""The program in processes that begin with the libraries read already: as `torchrun` starts several, in a tenth of the
time. `torchrun` itself starts those of test_resume.py and test_drill.py that are sent signals or killed."""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(options: tuple[str, ...], count: int, **environment: str) -> subprocess.CompletedProcess:
    """Runs so many processes of a run to their end; where one fails, the others are ended, as by `torchrun`.

    One process is told nothing of others, as where no launcher starts it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run_multitask"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    counts = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    meeting = counts | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared = {**os.environ, **environment, **(meeting if count > 1 else {})}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)] if count > 1 else [{}]
    with tempfile.TemporaryDirectory() as folder:
        started = [context.Process(target=_main, args=(options, shared | rank, folder)) for rank in ranks]
        for process in started:
            process.start()
        try:
            deadline = time.monotonic() + 300
            while any(process.is_alive() for process in started) and not any(process.exitcode for process in started):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            status = next((abs(process.exitcode) for process in started if process.exitcode), 0)  # who failed first
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.join(10)
                process.kill()
        said = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(options, status, *said)


def _main(options: tuple[str, ...], environment: dict[str, str], folder: str) -> None:
    multiprocessing.set_start_method(None, force=True)  # else loaders would start their workers as this was started
    os.environ.update(environment)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = ["run_multitask.py", *options]
    import run_multitask

    run_multitask.main()
