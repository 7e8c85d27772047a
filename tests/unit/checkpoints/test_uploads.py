"""Copies in the background: the training never waits, the last checkpoint arrives."""

import subprocess
import sys
import time
from threading import Event

import pytest
from helpers.checkpoints import make_checkpoint
from helpers.paths import ROOT

from multitask.checkpoints.remote import list_checkpoints
from multitask.checkpoints.uploads import Uploader, finish_uploads

# The memory of a process that makes a checkpoint of some size copies of it; prints how much it grew, in MB.
MEASURED = """
import re, sys
from pathlib import Path
from multitask.checkpoints.remote import download_checkpoint
from multitask.checkpoints.uploads import Uploader

folder, place = Path(sys.argv[1]), sys.argv[2]
# Not ru_maxrss, which begins with the peak of the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
uploader = Uploader(place, lambda steps: set(steps), print)
uploader.submit(folder)
assert uploader.close(120)
download_checkpoint(place, 500, folder.with_name("again"))
print(round(peak() - before))
"""


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def uploader(place, warnings):
    return Uploader(place, lambda steps: set(steps[-2:]), warnings.append)


@pytest.fixture
def held(proxy):
    """Holds every upload back until it is set."""
    held = Event()

    proxy.fault = lambda method, path: (lambda: held.wait(300)) if method == "POST" and "/upload/" in path else None
    return held


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_arrive_and_the_old_ones_go(uploader, place, warnings, tmp_path):
    for step in (1, 2, 3):
        uploader.submit(make_checkpoint(tmp_path, step))
        wait_until(lambda: not uploader.busy())
    assert uploader.close(20)
    assert list_checkpoints(place) == [2, 3]
    logged: dict[int, dict[str, float]] = {}
    uploader.report(logged.__setitem__)
    assert logged.keys() == {1, 2, 3} and all(0 < line["checkpoint/upload_seconds"] < 20 for line in logged.values())
    uploader.report(lambda *_: pytest.fail("it has been reported"))
    assert warnings == []


def test_at_the_end_the_best_is_there_too(uploader, bucket, place, tmp_path):
    best, last = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("<p>")
    uploader.submit(last)  # it took the place of the best, which was still waiting
    said: list[str] = []
    assert finish_uploads(uploader, [tmp_path / "report", tmp_path / "none"], said.append, lambda *_: None, best)
    assert list_checkpoints(place) == [1, 2] and said == []
    assert bucket.blob("runs/a/report/index.html").exists()


def test_a_slow_bucket_gets_the_newest(uploader, held, place, tmp_path):
    folders = [make_checkpoint(tmp_path, step) for step in (1, 2, 3, 4)]
    uploader.submit(folders[0])
    wait_until(lambda: uploader.running == folders[0])
    for folder in folders[1:]:
        uploader.submit(folder)
    assert not held.is_set()  # nothing has waited for the bucket
    assert uploader.busy() == {folders[0], folders[3]}  # the others may be deleted
    held.set()
    assert uploader.close(20)
    assert list_checkpoints(place) == [1, 4]
    steps: list[int] = []
    uploader.report(lambda step, values: steps.append(step))
    assert steps == [1, 4]
    assert uploader.busy() == set()


def test_closing_does_not_wait_for_ever(uploader, held, place, tmp_path):
    folder = make_checkpoint(tmp_path, 1)
    uploader.submit(folder)
    assert not uploader.close(0.3)  # while the bucket is held
    assert uploader.busy() == {folder} and list_checkpoints(place) == []
    held.set()
    assert uploader.close(20) and list_checkpoints(place) == [1]


def test_an_error_is_a_warning_and_closing_tries_again(uploader, proxy, place, warnings, tmp_path):
    proxy.fault = lambda method, path: "403" if "/upload/" in path else None
    folder = make_checkpoint(tmp_path, 1)
    uploader.submit(folder)
    wait_until(lambda: warnings and not uploader.running)
    assert str(folder) in warnings[0] and "403" in warnings[0] and "\n" not in warnings[0]
    assert uploader.busy() == {folder}  # still wanted
    assert not uploader.close(20) and len(warnings) == 2
    proxy.fault = lambda method, path: None
    assert uploader.close(20) and list_checkpoints(place) == [1]


def test_a_newer_one_makes_good_for_one_that_failed(uploader, proxy, place, warnings, tmp_path):
    proxy.fault = lambda method, path: "403" if "/upload/" in path else None
    uploader.submit(make_checkpoint(tmp_path, 1))
    wait_until(lambda: warnings and not uploader.running)
    proxy.fault = lambda method, path: None
    uploader.submit(make_checkpoint(tmp_path, 2))
    assert uploader.close(20) and list_checkpoints(place) == [2] and len(warnings) == 1


def test_what_was_copied_counts_even_if_old_ones_stay(uploader, proxy, place, warnings, tmp_path):
    proxy.fault = lambda method, path: "403" if method == "DELETE" else None
    for step in (1, 2, 3):
        uploader.submit(make_checkpoint(tmp_path, step))
        wait_until(lambda: not uploader.busy())
    assert uploader.close(20)
    assert list_checkpoints(place) == [1, 2, 3] and "deleting old checkpoints failed" in warnings[0]


def test_closing_without_a_checkpoint(uploader):
    assert uploader.close(5)


@pytest.mark.slow
def test_a_process_exits_while_an_upload_hangs(proxy, held, place, tmp_path):
    folder = make_checkpoint(tmp_path, 1)
    code = (
        "from pathlib import Path; from multitask.checkpoints.uploads import Uploader; import sys\n"
        "uploader = Uploader(sys.argv[2], set, print); uploader.submit(Path(sys.argv[1])); print(uploader.close(1.5))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, folder, place], cwd=ROOT, capture_output=True, text=True, timeout=150
    )
    assert (run.returncode, run.stdout) == (0, "False\n"), run
    assert proxy.requests and not held.is_set()
    held.set()


@pytest.mark.slow
@pytest.mark.drill
def test_memory_does_not_grow_with_the_checkpoint(proxy, place, tmp_path, drill):
    megabytes = drill(200, 500)
    folder = make_checkpoint(tmp_path, 500, megabytes << 20)
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, folder, place], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 100, run.stdout
    drill.says(f"{megabytes} MB went to the bucket and back with {int(run.stdout)} MB of memory more")
