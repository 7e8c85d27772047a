"""Whatever a tracker is told is read back from where it wrote it, with its own reader."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import wandb
from accelerate import PartialState
from accelerate.tracking import get_available_trackers
from helpers.runs import TIMING, start, wait_for_step
from helpers.tasks import read_jsonl
from helpers.wandb_server import WandbServer

from multitask.checkpoints.manifest import checkpoints_in
from multitask.cli.arguments import read_command
from multitask.errors import UserError
from multitask.tracking import trackers
from multitask.tracking.trackers import Trackers, check_trackers, for_trackers, shareable
from multitask.training.state import SavedState

HISTORY = [
    (2, {"train/loss": 1.0, "train/rte/loss": None}),
    (4, {"train/loss": 0.5}),
    (2, {"checkpoint/upload_seconds": 3.0}),  # comes late
    (4, {"predictions/rte": [{"row": 1, "text": "a <b>"}, {"row": 5, "text": "c"}]}),
]
SENT = {(2, "train/loss"), (4, "train/loss"), (2, "checkpoint/upload_seconds")}


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """A user whom no service knows."""
    PartialState(cpu=True)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    wandb.teardown()
    yield
    wandb.teardown()


def wandb_records(folder: Path) -> list[dict]:
    """Every record of every file that W&B wrote in a run's folder, by W&B's own reader."""
    records = []
    for path in sorted(folder.glob("wandb/*run-*/run-*.wandb")):
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        records += map(json.loads, subprocess.run(inspect, capture_output=True, text=True).stdout.splitlines())
    return records


def wandb_points(folder: Path) -> Counter:
    """How often each (step, name) was logged."""
    items = [record["history"]["item"] for record in wandb_records(folder) if record["type"] == "history"]
    points = [(item["step"], name.removesuffix("._type")) for item in items for name in item if name[0] != "_"]
    return Counter((step, name) for step, name in points if name != "step" and "." not in name)  # rest of a table


def begin(names, folder, history=(), told=None, run_id="abcd1234"):
    folder.mkdir(exist_ok=True, parents=True)
    tell = told.append if told is not None else pytest.fail
    return Trackers(names, "tests", folder, run_id, {"training": {"seed": 1}}, history, tell)


@pytest.mark.slow
def test_wandb_without_a_key_records_offline_and_says_how_to_upload(tmp_path):
    told = []
    begin(["wandb"], tmp_path / "run", HISTORY, told).finish()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert told == [f"note: W&B has no API key; the run is recorded offline, to be uploaded with: wandb sync {folder}"]
    records = wandb_records(tmp_path / "run")
    (run,) = (record["run"] for record in records if record["type"] == "run")
    assert (run["run_id"], run["project"], run["display_name"]) == ("abcd1234", "tests", "run")
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert {"name": "*", "step": "step"} in [
        {"name": metric.get("glob_name"), "step": metric.get("step_metric")} for metric in metrics
    ]
    points = wandb_points(tmp_path / "run")
    assert points.keys() >= SENT and set(points.values()) == {1} and (2, "train/rte/loss") not in points
    (table,) = folder.glob("files/media/table/predictions/rte_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["row", "text"] and content["data"] == [[1, "a <b>"], [5, "c"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value, why",
    [
        ("WANDB_MODE", "onlin", "knows no WANDB_MODE=onlin"),
        ("WANDB_API_KEY", "abc", "does not take the API key (WANDB_API_KEY invalid: API key must have 40+ characters"),
    ],
)
def test_wandb_with_a_wrong_key_or_mode_records_offline_and_says_why(tmp_path, monkeypatch, name, value, why):
    monkeypatch.setenv(name, value)
    told = []
    begin(["wandb"], tmp_path / "run", HISTORY, told).finish()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert len(told) == 1 and told[0].startswith(f"note: W&B {why}") and told[0].endswith(f"wandb sync {folder}")
    assert wandb_points(tmp_path / "run").keys() >= SENT


@pytest.mark.slow
def test_wandb_begins_anew_with_all_that_is_known(tmp_path):
    first = begin(["wandb"], tmp_path / "run", HISTORY, [])
    first.log(6, {"train/loss": 0.4})  # after the checkpoint; then the process ends
    first.finish()
    second = begin(["wandb"], tmp_path / "run", HISTORY, [])
    second.log(6, {"train/loss": 0.4})
    second.log(8, {"train/loss": 0.3})
    second.finish()
    points = wandb_points(tmp_path / "run")
    assert points.keys() >= SENT | {(6, "train/loss"), (8, "train/loss")} and set(points.values()) == {1}
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.slow
def test_a_service_that_is_away_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(trackers, "WANDB_TIMEOUT_SECONDS", 2)
    wandb.teardown()
    told = []
    begin(["wandb"], tmp_path / "run", HISTORY, told).finish()
    assert len(told) == 1 and "W&B cannot be reached (" in told[0] and "wandb sync" in told[0]
    assert wandb_points(tmp_path / "run").keys() >= SENT


@pytest.fixture
def wandb_server(monkeypatch):
    """A server for a user who has a key."""
    server = WandbServer()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    wandb.teardown()
    yield server
    wandb.teardown()
    server.server.stop()


@pytest.mark.slow
def test_wandb_online_is_sent_what_the_server_lacks(tmp_path, wandb_server):
    first = begin(["wandb"], tmp_path / "run", HISTORY[:1])
    first.log(6, {"train/loss": 0.4})  # after the checkpoint; then the process ends
    first.finish()
    wandb.teardown()
    for values in ({"train/loss": 0.4, "train/grad_norm": 1.0}, {}):
        again = begin(["wandb"], tmp_path / "run", HISTORY[:3])
        again.log(6, values)
        again.log(8, {"train/loss": 0.3})
        again.finish()
        wandb.teardown()
    rows = wandb_server.rows("abcd1234")
    points = Counter((row["step"], name) for row in rows for name in row if name[0] != "_" and name != "step")
    assert points == Counter(SENT | {(6, "train/loss"), (6, "train/grad_norm"), (8, "train/loss")})
    assert [row["_step"] for row in rows] == list(range(len(rows)))  # so that the server takes each


class _Tracker:
    """Stands for W&B online, of which the server has something already."""

    def __init__(self):
        self.logged = []

    def log(self, values):
        self.logged.append(values)


def test_what_the_server_has_is_not_sent_again(tmp_path, monkeypatch):
    tracker = _Tracker()
    known = {(2, "train/loss"), (6, "train/loss")}  # also from after the checkpoint
    monkeypatch.setattr(trackers, "_start_wandb", lambda *_: (tracker, known))
    online = begin(["wandb"], tmp_path, HISTORY[:3])
    for step in (6, 8):
        online.log(step, {"train/loss": 0.4, "train/grad_norm": 1.0})
    assert tracker.logged == [
        {"step": 4, "train/loss": 0.5},
        {"step": 2, "checkpoint/upload_seconds": 3.0},
        {"step": 6, "train/grad_norm": 1.0},
        {"step": 8, "train/loss": 0.4, "train/grad_norm": 1.0},
    ]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_other_trackers_have_every_point_once_too(tmp_path, monkeypatch, name, capsys):
    read = {"tensorboard": tensorboard_points, "trackio": trackio_points}[name]
    for _ in range(2):
        tracking = begin([name], tmp_path / "run", HISTORY)
        tracking.log(6, {"train/loss": 0.4})
        tracking.finish()
    points = read(tmp_path / "run")
    assert points == Counter(SENT | {(6, "train/loss")})
    assert capsys.readouterr().out == ""


def tensorboard_points(folder: Path) -> Counter:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return Counter((event.step, name) for name in events.Tags()["scalars"] for event in events.Scalars(name))


def trackio_points(folder: Path) -> Counter:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    assert [run.name for run in Api().runs("tests")] == ["run"]
    rows = SQLiteStorage.get_logs("tests", "run")
    return Counter((row["step"], name) for row in rows for name in row if name not in ("step", "timestamp"))


def test_two_runs_with_one_name_are_two_runs_in_trackio(tmp_path):
    from trackio import Api

    for place, run_id in (("a", "abcd1234"), ("b", "efgh5678"), ("b", "efgh5678")):
        begin(["trackio"], tmp_path / place / "run", HISTORY, run_id=run_id).finish()
    runs = list(Api().runs("tests"))
    assert [run.name for run in runs] == ["run", "run"]
    assert sorted(run.config["run.id"] for run in runs) == ["abcd1234", "efgh5678"]


def test_hyperparameters_stand_beside_the_final_metrics_of_the_run_itself(tmp_path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    tracking = begin(["tensorboard"], tmp_path / "run", HISTORY)
    tracking.log(6, {"eval/rte/accuracy": 0.5, "eval/average": 0.5})
    tracking.log(8, {"eval/rte/accuracy": 0.7, "eval/average": 0.7})
    tracking.finish()
    folder = tmp_path / "run" / "tensorboard"
    assert [path.name.startswith("events.") for path in folder.iterdir() if path.is_file()] == [True]
    assert not [path for path in folder.rglob("*") if path.is_dir()]  # each would be a run of its own
    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(found).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/rte/accuracy", "eval/average"]
    assert [info.name for info in experiment.hparam_infos] == ["training.seed"]


def test_trackers_are_sent_as_much_agreement_as_asked_for():
    values = {f"agreement/{name}": 0.5 for name in ("average", "a/b", "a/c", "b/c", "layer_0/a/b", "embeddings/b/c")}
    values["train/a/b/loss"] = 1.0

    def shown(agreement):
        return [name.removeprefix("train_agreement/") for name in for_trackers(values, agreement)]

    assert shown("average") == ["average", "train/a/b/loss"]
    assert shown("pairs") == ["average", "a/b", "a/c", "b/c", "train/a/b/loss"]
    assert len(shown("layers")) == 7


def test_a_tracker_that_fails_is_left_out_and_named(tmp_path):
    class Broken(_Tracker):
        def log(self, values, step):
            raise OSError("no space left")

    told = []
    tracking = begin(["tensorboard"], tmp_path, told=told)
    tracking.finish()
    tracking.started["tensorboard"] = Broken()
    tracking.log(1, {"a": 1.0})
    tracking.log(2, {"a": 1.0})
    assert told == ["note: the run goes on without tensorboard: OSError: no space left"]


def test_a_tracker_that_is_not_installed_is_named(mixture_config, write_config, monkeypatch):
    path = write_config(mixture_config)
    installed = [tracker for tracker in get_available_trackers() if str(tracker) != "trackio"]
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: installed)
    with pytest.raises(UserError, match="^tracking.report_to: trackio is not installed; pip install trackio, or"):
        read_command(["--config", path, "--tracking.report_to", "[wandb, trackio]"])
    check_trackers(["wandb", "tensorboard"])


def test_what_is_shared_names_no_home_and_no_password(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    config = {
        "data_root": "/data/from/environment",
        "model": {"encoder": "/home/ada/encoder", "other": "/home/adam/encoder"},
        "files": ["https://ada:secret@example.com/rows.csv", "/home/ada"],
        "rank": 8,
    }
    assert shareable(config) == {
        "model": {"encoder": "~/encoder", "other": "/home/adam/encoder"},
        "files": ["https://example.com/rows.csv", "~"],
        "rank": 8,
    }


# -- the whole program -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [True, False])
def test_texts_of_the_data_are_kept_out_of_trackers(mixture_config, train, is_shared):
    mixture_config["tracking"] = {"report_to": ["wandb"], "log_predictions": is_shared}
    folder = train("--training.max_steps", "2")
    assert (folder / "watched.jsonl").stat().st_size > 1000  # for the report
    tables = [str(path) for path in (folder / "wandb").rglob("*.table.json")]
    assert bool(tables) == is_shared and (folder / "wandb").is_dir()


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_has_every_point_once(mixture_config, write_config, tmp_path):
    folder = tmp_path / "run"
    mixture_config["training"] |= {"max_steps": 400, "save_steps": 5, "eval_steps": 10, "dataloader_num_workers": 1}
    mixture_config["tracking"] = {"report_to": ["wandb", "tensorboard"]}
    process = start(write_config(mixture_config), folder)
    wait_for_step(folder, 12, process)
    process.kill()
    process.wait()
    saved = SavedState.read(checkpoints_in(folder)[0])
    assert wandb_points(folder)  # of what it had written
    second = start(write_config(mixture_config), folder)
    wait_for_step(folder, saved.step + 7, second)
    second.terminate()
    out, err = second.communicate(timeout=120)
    assert second.returncode == 143, err
    assert "note: W&B has no API key; the run is recorded offline" in out
    last = SavedState.read(checkpoints_in(folder)[0])
    assert last.run_id == saved.run_id

    points = wandb_points(folder)
    expected = Counter((line["step"], name) for line in read_jsonl(folder / "metrics.jsonl") for name in line)
    expected = Counter({point: count for point, count in expected.items() if point[1] not in ("step", "time")})
    tables = {point for point in points if point[1].startswith("predictions/")}
    evaluated = {line["step"] for line in read_jsonl(folder / "metrics.jsonl") if "eval/average" in line}
    assert len(evaluated) >= 1 and tables == {
        (s, f"predictions/{t}") for s in evaluated for t in mixture_config["tasks"]
    }
    assert {step for step, name in points if name == "train/loss"} == set(range(1, last.step + 1))
    assert points == expected + Counter(tables) and set(points.values()) == {1}
    assert tensorboard_points(folder).keys() == set(expected)
    logged = json.dumps([record for record in wandb_records(folder) if record["type"] in ("run", "config")])
    assert '"batch_size": 12' in logged.replace("'", '"') and str(Path.home()) not in logged
    assert TIMING & {name for _, name in points}
