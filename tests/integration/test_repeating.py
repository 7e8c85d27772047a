"""Several seeds, folders named after settings, a sweep, comparisons of runs, models on the hub, files in a bucket."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate import Accelerator
from google.cloud import storage
from helpers.hub_server import HubServer
from helpers.paths import ROOT
from helpers.runs import curve
from helpers.tasks import ALL_TASKS, read_jsonl, write_jsonl
from huggingface_hub import ModelCard, constants
from pyarrow import parquet

import run_multitask
from multitask.cli import compare
from multitask.cli.arguments import read_command
from multitask.cli.commands import export, predict_rows
from multitask.cli.seeds import summarise
from multitask.config.load import load_config
from multitask.data.remote_files import local_copies
from multitask.errors import UserError
from multitask.evaluation.bootstrap import Difference, resampled
from multitask.evaluation.validation_rows import read_rows
from multitask.tasks.base import TASK_TYPES
from multitask.tracking.comparison import Contender, differing_settings

# -- seeds -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def seeds(mixture_config, write_config, capsys):
    def run(*options, stop_signal=lambda: 0):
        command = read_command(["--config", write_config(mixture_config), *options])
        status = run_multitask.train_seeds(command, Accelerator(cpu=True), stop_signal)
        return status, capsys.readouterr().out

    return run


def test_seeds_run_one_after_the_other_and_end_with_a_table(seeds, train, tmp_path):
    status, printed = seeds("--seeds", "3,5", "--training.max_steps", "2")
    alone = train(
        "--training.max_steps", "2", "--training.seed", "5", "--training.output_dir", str(tmp_path / "alone")
    )
    folder = tmp_path / "run"
    assert status == 0 and {path.name for path in folder.iterdir()} == {"seed-3", "seed-5", "seeds.json"}
    of_five = json.loads((folder / "seed-5" / "metrics.json").read_text())
    assert of_five["tasks"] == json.loads((alone / "metrics.json").read_text())["tasks"]
    averages = [json.loads((folder / f"seed-{seed}" / "metrics.json").read_text())["average"] for seed in (3, 5)]
    summary = json.loads((folder / "seeds.json").read_text())
    assert summary["average"] == {
        "mean": pytest.approx(np.mean(averages)),
        "deviation": pytest.approx(np.std(averages, ddof=1)),
        "n": 2,
    }
    assert re.search(rf"average +{np.mean(averages):.4f} +{np.std(averages, ddof=1):.4f} +2\n", printed)
    assert f"The results of all seeds are in {folder / 'seeds.json'}" in printed


@pytest.mark.slow
def test_seeds_that_are_done_are_not_trained_again(seeds, tmp_path):
    seeds("--seeds", "0", "--training.max_steps", "2")
    before = curve(tmp_path / "run" / "seed-0")
    _, printed = seeds("--seeds", "0,1", "--training.max_steps", "2")
    assert np.array_equal(curve(tmp_path / "run" / "seed-0"), before) and len(before) == 2
    assert "the run has ended with" in printed and summarise(tmp_path / "run", [0, 1])["average"]["n"] == 2


def test_a_signal_ends_all_seeds(seeds, tmp_path):
    status, printed = seeds("--seeds", "0,1", "--training.max_steps", "4", stop_signal=lambda: 15)
    assert status == 143 and "stopped by a signal" in printed
    assert not (tmp_path / "run" / "seed-1").exists()


@pytest.mark.parametrize("value", ["", "a,b", "1,1", "1.5", "-1"])
def test_seeds_that_are_none(mixture_config, write_config, value):
    with pytest.raises(
        UserError, match=f"--seeds: '{value}' is no list of different numbers; for example --seeds 0,1"
    ):
        read_command(["--config", write_config(mixture_config), f"--seeds={value}"])


# -- folders named after settings --------------------------------------------------------------------------------------


def test_a_folder_is_named_after_settings(mixture_config, write_config):
    mixture_config["training"]["output_dir"] = "runs/{config}-{training.learning_rate}-{training.seed}-{adapters}"
    mixture_config["checkpoints"] = {"remote": "gs://bucket/{config}/{model.encoder}"}
    config = read_command(["--config", write_config(mixture_config), "--training.seed", "7"]).config
    assert config.training.output_dir == "runs/mixture-0.001-7-null"
    assert re.fullmatch(r"gs://bucket/mixture/tmp-[\w-]+-bert", config.checkpoints.remote)
    assert load_config(write_config(mixture_config)).training.output_dir == "runs/mixture-0.001-0-null"


def test_a_placeholder_that_is_no_setting_is_named(mixture_config, write_config):
    mixture_config["training"]["output_dir"] = "runs/{training.sed}"
    message = r"training.output_dir: \{training.sed\} is no key of the configuration; did you mean 'training.seed'\?"
    with pytest.raises(UserError, match=message):
        read_command(["--config", write_config(mixture_config)])


def test_the_sweep_calls_the_program_as_wandbs_agent_does():
    """Its command with the arguments that the agent fills in, as far as the plan."""
    sweep = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text())
    chosen = {"training.learning_rate": 0.0003, "mixture.temperature": 2}
    assert chosen.keys() == sweep["parameters"].keys()
    filled = {"${env}": ["/usr/bin/env"], "${program}": [sweep["program"]]}
    filled["${args}"] = [f"--{name}={value}" for name, value in chosen.items()]
    command = [word for part in sweep["command"] for word in filled.get(part, [part])]
    at = command.index("--config")
    config = read_command(command[at:]).config
    assert config.training.output_dir == "runs/sweep/0.0003-2.0" and config.mixture.temperature == 2
    assert command[:at] == [
        *("/usr/bin/env", "accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml", "run_multitask.py")
    ]


# -- comparing runs ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.pictures
def test_runs_are_compared(train, tmp_path, capsys):
    options = ["--training.max_steps", "6", "--training.eval_steps", "2"]
    first = train(*options, "--training.output_dir", str(tmp_path / "first"))
    second = train(*options, "--training.output_dir", str(tmp_path / "second"), "--training.learning_rate", "1e-2")
    capsys.readouterr()
    assert compare.main([str(first), str(second), "--samples", "50"]) == 0
    printed = capsys.readouterr().out
    assert re.match(r"setting +first +second\n-+\ntraining.learning_rate +0.001 +0.01\n\n", printed)
    results = [json.loads((folder / "metrics.json").read_text()) for folder in (first, second)]
    for task, metrics in results[0]["tasks"].items():
        for name, value in metrics.items():
            other = results[1]["tasks"][task][name]
            assert re.search(rf"{task} +{name} +{value:.4f} +{other:.4f} +\{other - value:+.4f} \[", printed)
    assert re.search(rf"average +{results[0]['average']:.4f} +{results[1]['average']:.4f} ", printed)
    page = (tmp_path / "comparison.html").read_text()
    assert f"The curves are in {tmp_path / 'comparison.html'}" in printed
    assert (
        page.count("<svg") == 1 + 4 + 1
        and "training.learning_rate" in page
        and "http" not in page.replace("http://www.w3.org", "")
    )


@pytest.mark.slow
def test_what_is_kept_of_each_row_gives_the_metrics_again(mixture_config, task_files, train):
    mixture_config["tasks"] = {
        name: task | {"dataset": "json", "data_files": dict(task_files[name])} for name, task in ALL_TASKS.items()
    }
    mixture_config["training"] |= {"max_steps": 1, "batch_size": 24}
    folder = train()
    results = json.loads((folder / "metrics.json").read_text())["tasks"]
    for name, of in read_rows(folder / "validation.parquet").items():
        for metric, value in results[name].items():
            again = TASK_TYPES[of.type].metric(metric, len(of.labels))(of.references, of.predictions)
            assert again == pytest.approx(value, nan_ok=True) or value is None, (name, metric)
    assert parquet.read_table(folder / "validation.parquet").column_names == ["task", "row", "prediction", "reference"]


@pytest.mark.slow
def test_seeds_are_compared_as_one(seeds, train, tmp_path, capsys):
    seeds("--seeds", "0,1", "--training.max_steps", "2")
    other = train("--training.max_steps", "2", "--training.output_dir", str(tmp_path / "other"))
    capsys.readouterr()
    assert compare.main([str(tmp_path / "run"), str(other), "--samples", "20"]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "seeds.json").read_text())["average"]
    assert f"{summary['mean']:.4f} ± {summary['deviation']:.4f}" in printed
    assert "Nothing differs in the settings." not in printed or "training.seed" not in printed


@pytest.mark.slow
def test_rows_that_are_not_the_same_have_no_difference(train, tmp_path, capsys):
    first = train("--training.max_steps", "1", "--training.output_dir", str(tmp_path / "first"))
    fewer = ["--tasks.animal.max_eval_examples", "9", "--training.output_dir", str(tmp_path / "second")]
    second = train("--training.max_steps", "1", *fewer)
    capsys.readouterr()
    assert compare.main([str(first), str(second), "--samples", "20"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"animal +accuracy +\d\.\d+ +\d\.\d+ +–", printed) and re.search(r"average .* –", printed)


def test_a_task_that_a_run_lacks_is_one_line():
    alone = {"tasks.rte.type": "classification", "training.seed": 0}
    together = alone | {"tasks.stsb.type": "regression", "tasks.stsb.weight": 0.3, "training.seed": 1}
    contenders = [Contender(name, config, [], []) for name, config in (("alone", alone), ("together", together))]
    assert differing_settings(contenders) == [
        ("training.seed", ["0", "1"]),
        ("tasks.stsb", ["absent", "present"]),
    ]


def test_what_cannot_be_compared_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "no")])
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'no'} does not exist (")


def test_the_bootstrap_has_the_interval_of_the_normal_approximation():
    """Of a difference of two accuracies, whose standard error is known (McNemar 1947)."""
    rng = np.random.default_rng(0)
    references = rng.integers(2, size=400).tolist()
    right = [rng.random(400) < 0.7, rng.random(400) < 0.8]
    first, second = ([r if ok else 1 - r for r, ok in zip(references, of, strict=True)] for of in right)
    accuracy = TASK_TYPES["classification"].metric("accuracy", 2)
    samples = resampled(accuracy, references, [first], [second], 2000)
    changes = right[1].astype(float) - right[0]
    found = Difference.of(changes.mean(), samples)
    error = 1.96 * changes.std() / 20
    assert (found.low, found.high) == pytest.approx((changes.mean() - error, changes.mean() + error), abs=0.01)
    assert found.is_significant == (abs(changes.mean()) > error)
    same = resampled(accuracy, references, [first], [first], 50)
    assert np.abs(same).max() == 0 and not Difference.of(0.0, same).is_significant


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_mistake(train, tmp_path):
    folder = train("--training.max_steps", "1")
    command = f"{sys.executable} -m multitask.compare {folder} {folder} --samples 5 | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("Nothing differs in the settings.") and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] in ("0", "141")


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    server = HubServer()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    yield server
    server.server.stop()


@pytest.mark.slow
def test_models_are_uploaded_with_their_cards(hub, mixture_config, train, capsys):
    mixture_config["card"] = {"license": "mit", "language": ["en", "de"]}
    folder = train("--training.max_steps", "1", "--push_to_hub", "me/mixed")
    assert hub.files.keys() == {f"me/mixed-{task}" for task in mixture_config["tasks"]}
    for task in mixture_config["tasks"]:
        of_task = hub.files[f"me/mixed-{task}"]
        assert of_task == {p.name: p.read_bytes() for p in (folder / "export" / task).iterdir()}
    card = ModelCard(hub.files["me/mixed-animal"]["README.md"].decode()).data
    assert (card.license, card.language, card.metrics) == ("mit", ["en", "de"], ["accuracy"])
    assert f"On the hub: {hub.url}/me/mixed-similar" in capsys.readouterr().out

    options = ["--mode", "export", "--checkpoint", str(folder), "--tasks", "animal"]
    export(read_command([*options, "--push_to_hub", "me/again"]), Accelerator(cpu=True))
    assert hub.files.keys() >= {"me/again-animal"} and "me/again-choice" not in hub.files


def test_a_hub_that_refuses_loses_nothing(hub, train, tmp_path):
    hub.refuses = "me/mixed-animal"
    with pytest.raises(UserError) as raised:
        train("--training.max_steps", "1", "--push_to_hub", "me/mixed")
    message = str(raised.value)
    assert message.startswith("--push_to_hub: me/mixed-animal was not uploaded: ") and "403" in message
    assert f"the models are in {tmp_path / 'run' / 'export'}, and --mode export … --push_to_hub me/mixed" in message
    assert (tmp_path / "run" / "export" / "animal" / "config.json").exists()


def test_what_is_wrong_with_an_upload_is_said_before_the_run(mixture_config, write_config, monkeypatch):
    path = write_config(mixture_config)
    monkeypatch.setattr("multitask.model.hub.get_token", lambda: None)
    with pytest.raises(UserError, match="--push_to_hub: there is no token; `hf auth login`, or set HF_TOKEN"):
        read_command(["--config", path, "--push_to_hub", "me/mixed"])
    with pytest.raises(UserError, match="--push_to_hub: Repo id must"):
        read_command(["--config", path, "--push_to_hub", "me/mixed/again"])


# -- files in a bucket -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_in_a_bucket_are_trained_on_and_predicted(
    bucket, mixture_config, task_files, train, tmp_path, monkeypatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    here = train("--training.max_steps", "2", "--training.output_dir", str(tmp_path / "here"))
    for split, path in task_files["animal"].items():
        bucket.blob(f"data/animal/{split}-0.jsonl").upload_from_filename(path)
    files = {split: f"gs://{bucket.name}/data/animal/{split}-*.jsonl" for split in task_files["animal"]}
    mixture_config["tasks"]["animal"]["data_files"] = files
    there = train("--training.max_steps", "2", "--training.output_dir", str(tmp_path / "there"))
    results = [json.loads((folder / "metrics.json").read_text())["tasks"] for folder in (here, there)]
    assert results[0] == results[1]

    options = ["--mode", "predict", "--checkpoint", str(there), "--tasks", "animal"]
    source = f"gs://{bucket.name}/data/animal/validation-0.jsonl"
    command = read_command([*options, "--input", source, "--output", str(tmp_path / "answers.jsonl")])
    predict_rows(command, Accelerator(cpu=True))
    assert len(read_jsonl(tmp_path / "answers.jsonl")) == 17


def test_a_changed_object_is_copied_again(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    url = f"gs://{bucket.name}/a/rows.csv"
    copies = []
    for content in ("one", "one", "other"):
        blob = storage.Client().bucket(bucket.name).blob("a/rows.csv")
        if not copies or content != "one":
            blob.upload_from_string(content)
        copies.append(local_copies(url)[0])
    assert copies[0] == copies[1] != copies[2] and Path(copies[2]).read_text() == "other"


def test_an_object_that_is_not_there_is_named(bucket, mixture_config, train):
    url = f"gs://{bucket.name}/no.jsonl"
    mixture_config["tasks"]["animal"]["data_files"]["train"] = url
    with pytest.raises(UserError, match=f"tasks.animal.data_files.train: there is no object {url}"):
        train()


# -- predictions in a pipe ---------------------------------------------------------------------------------------------


def test_predictions_carry_their_rows_through_a_pipe(train, monkeypatch, capsys):
    folder = train("--training.max_steps", "1")
    capsys.readouterr()
    rows = [{"id": 7, "text": "Der Hund"}, {"text": "the cat", "more": [1, None]}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(row) + "\n" for row in rows)))
    options = ["--mode", "predict", "--checkpoint", str(folder), "--tasks", "animal", "--input", "-", "--output", "-"]
    predict_rows(read_command(options), Accelerator(cpu=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["fields"] for line in lines] == rows and [line["row"] for line in lines] == [0, 1]
    assert all(line["animal"]["label"] for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_the_row_are_texts_in_formats_with_columns(train, tmp_path, kind):
    folder = train("--training.max_steps", "1")
    rows = [{"id": 7, "text": "Der Hund", "tags": ["a", "b"]}, {"id": None, "text": "the cat", "tags": "x", "late": 1}]
    source, target = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / f"answers.{kind}"
    options = ["--mode", "predict", "--checkpoint", str(folder), "--tasks", "animal"]
    predict_rows(read_command([*options, "--input", str(source), "--output", str(target)]), Accelerator(cpu=True))
    if kind == "csv":
        head, first, second = target.read_text().splitlines()
        assert head.startswith("row,fields.id,fields.text,fields.tags,animal.label")
        assert first.startswith('0,7,Der Hund,"[""a"", ""b""]",') and second.startswith("1,,the cat,x,")
    else:
        read = parquet.read_table(target).to_pylist()
        assert [row["fields.tags"] for row in read] == ['["a", "b"]', "x"]
        assert [row["fields.id"] for row in read] == ["7", None]


@pytest.mark.slow
def test_token_labels_carry_their_words(mixture_config, task_files, train, tmp_path):
    mixture_config["tasks"] = {"tags": ALL_TASKS["tags"] | {"dataset": "json", "data_files": task_files["tags"]}}
    folder = train("--training.max_steps", "1")
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": "The CAT sat"}, {"words": ["a", "New York"]}])
    options = ["--mode", "predict", "--checkpoint", str(folder), "--input", str(source)]
    predict_rows(read_command([*options, "--output", str(tmp_path / "a.jsonl")]), Accelerator(cpu=True))
    first, second = (line["tags"] for line in read_jsonl(tmp_path / "a.jsonl"))
    assert first["words"] == ["The", "CAT", "sat"] and second["words"] == ["a", "New York"]
    assert len(first["labels"]) == 3


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_help_names_nothing_that_is_refused():
    run = {"cwd": ROOT, "capture_output": True, "text": True, "env": os.environ | {"COLUMNS": "200"}}
    said = subprocess.run([sys.executable, "run_multitask.py", "--help"], **run).stdout
    assert "--seeds N,N" in said and "--push_to_hub ORG/NAME" in said and "--config CONFIG" in said
    assert not re.search(r"--(model|training|mixture|checkpoints|tracking|card) CONFIG", said)
