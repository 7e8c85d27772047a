"""`python -m multitask.checkpoint list|verify|fetch`, on folders and on a real bucket."""

import re
import subprocess
import sys

import pytest
from helpers.checkpoints import make_checkpoint
from helpers.paths import ROOT

from multitask.checkpoints.manifest import verify
from multitask.checkpoints.remote import upload_checkpoint
from multitask.cli.checkpoints import main


@pytest.fixture(params=["folder", "bucket"])
def run(request, tmp_path):
    """A run with two checkpoints: its location."""
    folders = [
        make_checkpoint(tmp_path / "run" / "checkpoints", s, average=0.75 if s > 500 else None) for s in (500, 1000)
    ]
    if request.param == "folder":
        return str(tmp_path / "run")
    place = request.getfixturevalue("place")
    for folder in folders:
        upload_checkpoint(folder, place)
    return place


@pytest.fixture
def harm(run, tmp_path, request):
    """Changes a file of the newest checkpoint, in its length or not."""

    def change(content: bytes | None):
        if run.startswith("gs://"):
            blob = request.getfixturevalue("bucket").blob("runs/a/step-00001000/optimizer.safetensors")
            blob.delete() if content is None else blob.upload_from_string(content)
        else:
            path = tmp_path / "run/checkpoints/step-00001000/optimizer.safetensors"
            path.unlink() if content is None else path.write_bytes(content)

    return change


def one(run, step):
    return f"{run}/step-{step:08}" if run.startswith("gs://") else f"{run}/checkpoints/step-{step:08}"


def test_what_there_is_is_listed(run, capsys):
    assert main(["list", run]) == 0
    head, rule, newest, oldest = capsys.readouterr().out.splitlines()
    assert head.split() == ["checkpoint", "files", "bytes", "average"] and set(rule) == {"-"}
    assert re.fullmatch(rf"{one(run, 1000)} +5 +8,\d\d\d +0\.7500", newest)
    assert re.fullmatch(rf"{one(run, 500)} +5 +8,\d\d\d +-", oldest)  # it was not evaluated then


def test_whole_ones_are_whole(run, capsys):
    assert main(["verify", run]) == main(["verify", one(run, 500)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": whole, 5 files, ")[0] for line in lines] == [one(run, step) for step in (1000, 500, 500)]


@pytest.mark.parametrize(
    "content, said", [(b"x" * 5000, "CRC32C"), (b"", ""), (None, "optimizer.safetensors is missing")]
)
def test_a_damaged_one_is_named_and_the_status_is_1(run, harm, content, said, capsys):
    harm(content)
    assert main(["verify", run]) == 1
    newest, oldest = capsys.readouterr().out.splitlines()
    assert newest.startswith(f"{one(run, 1000)}: damaged: ") and "optimizer.safetensors" in newest and said in newest
    assert oldest.startswith(f"{one(run, 500)}: whole")


def test_one_is_fetched_whole_or_not_at_all(run, harm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", run]) == 0
    verify(tmp_path / "step-00001000")
    assert capsys.readouterr().out == f"{one(run, 1000)} is whole in step-00001000\n"
    assert main(["fetch", one(run, 500), "--output", "new/folder"]) == 0
    verify(tmp_path / "new" / "folder")
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", run])
    assert capsys.readouterr().err == "error: --output: step-00001000 is there already; give another folder\n"
    harm(b"something else")
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", run, "--output", "third"])
    assert re.fullmatch(rf"error: {one(run, 1000)} is damaged: .*optimizer.safetensors.*\n", capsys.readouterr().err)
    assert not (tmp_path / "third").exists() and list(tmp_path.glob("*.partial")) == []


def test_mistakes(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for location, said in {
        str(tmp_path): f"there is no whole checkpoint in {tmp_path}",
        str(tmp_path / "gone"): f"there is no whole checkpoint in {tmp_path}/gone",
        place: f"there is no whole checkpoint in {place}",
        f"{place}/step-00000500": f"{place}: it has no whole checkpoint of step 500",
        "gs://": "'gs://' is not the URL of a place in Google Cloud Storage; write gs://BUCKET/PREFIX",
    }.items():
        for command in ("list", "verify", "fetch"):
            with pytest.raises(SystemExit, match="2"):
                main([command, location])
            assert capsys.readouterr().err == f"error: {said}\n"
    make_checkpoint(tmp_path / "run" / "checkpoints", 5)
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", str(tmp_path / "run"), "--output", str(tmp_path / "file" / "under")])
    assert f"error: --output: {tmp_path}/file/under cannot be written: " in capsys.readouterr().err
    assert list(tmp_path.glob("*.partial")) == []  # nothing is left in the current folder


@pytest.mark.slow
def test_it_runs_as_a_command(tmp_path, capsys):
    make_checkpoint(tmp_path / "checkpoints", 5)
    command = [sys.executable, "-W", "error", "-m", "multitask.checkpoint", "verify", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and ": whole, 5 files" in done.stdout, done.stderr
    with pytest.raises(SystemExit, match="2"):
        main(["veryfy", "x"])
    assert "invalid choice: 'veryfy'" in capsys.readouterr().err
