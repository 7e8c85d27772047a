"""What is done with a trained model: evaluated again, asked, exported, as a user does it."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from helpers.encoders import ENCODER_CONFIGS
from helpers.paths import ROOT
from helpers.tasks import ALL_TASKS, read_jsonl, write_jsonl
from pyarrow import parquet
from safetensors import safe_open

from multitask import Predictor
from multitask.checkpoints.format import find_checkpoint, load_checkpoint
from multitask.cli.arguments import read_command
from multitask.cli.commands import evaluate, export, predict_rows
from multitask.errors import UserError
from multitask.model.multitask import logits_of

pytestmark = pytest.mark.slow  # each needs a trained run


@pytest.fixture(scope="module")
def folder(request, encoders, task_files, tmp_path_factory):
    """A run of all types of tasks; with adapters or without."""
    import yaml

    import run_multitask

    folder = tmp_path_factory.mktemp("run")
    config = {
        "model": {"encoder": str(encoders("bert")), "max_length": 64},
        "adapters": getattr(request, "param", None),
        "tasks": {name: t | {"dataset": "json", "data_files": task_files[name]} for name, t in ALL_TASKS.items()},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": 8,
            "batch_size": 24,
            "max_tokens_per_pass": 600,
            "learning_rate": 1e-2,
            "dataloader_num_workers": 0,
        },
    }
    (folder / "mixture.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run_multitask.train(read_command(["--config", str(folder / "mixture.yaml")]), Accelerator(cpu=True))
    return folder / "run"


SCOPES = [None, {"rank": 2, "scope": "per_task"}, {"rank": 2, "scope": "both"}]
both_ways = pytest.mark.parametrize("folder", SCOPES, indirect=True, ids=["full", "per_task", "both"])
ROW = {
    "text": "the cat runs",
    "text_pair": "a dog sleeps",
    "choices": ["tree", "river", "house"],
}


def run_mode(mode, *options):
    modes = {"evaluate": evaluate, "export": export, "predict": predict_rows}
    command = read_command(["--mode", mode, *options])
    modes[mode](command, Accelerator(cpu=True))


# -- evaluate and export ----------------------------------------------------------------------------------------------


@both_ways
def test_an_evaluation_repeats_the_numbers_of_the_run_exactly(folder, tmp_path, capsys):
    run_mode("evaluate", "--checkpoint", str(folder), "--output", str(tmp_path / "again.json"))
    of_run = json.loads((folder / "metrics.json").read_text())
    assert of_run.pop("run_seconds") > 0 and of_run["losses"].keys() == of_run["tasks"].keys()
    assert json.loads((tmp_path / "again.json").read_text()) == of_run
    assert "average" in capsys.readouterr().out
    checkpoint = folder / "checkpoints" / "step-00000008"
    run_mode(
        "evaluate", "--checkpoint", str(checkpoint), "--tasks", "tags,find", "--output", str(tmp_path / "two.json")
    )
    again, all_tasks = (json.loads(path.read_text()) for path in (tmp_path / "two.json", folder / "metrics.json"))
    assert again["tasks"] == {name: all_tasks["tasks"][name] for name in ("tags", "find")} and again["step"] == 8


@both_ways
def test_a_checkpoint_exports_what_the_run_did(folder, tmp_path):
    run_mode("export", "--checkpoint", str(folder), "--output", str(tmp_path / "all"))
    files = {p.relative_to(folder / "export"): p for p in (folder / "export").rglob("*") if p.is_file()}
    again = {p.relative_to(tmp_path / "all"): p for p in (tmp_path / "all").rglob("*") if p.is_file()}
    assert files.keys() == again.keys() and len(files) >= 6 * 5
    assert [name for name, path in files.items() if path.read_bytes() != again[name].read_bytes()] == []
    run_mode("export", "--checkpoint", str(folder), "--output", str(tmp_path / "one"), "--tasks", "find")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["find"]


@both_ways
def test_a_checkpoint_holds_each_weight_once(folder):
    checkpoint = folder / "checkpoints" / "step-00000008"
    weights = {path.name for path in checkpoint.iterdir() if path.suffix == ".safetensors"}
    assert weights == {"model.safetensors", "optimizer.safetensors"}
    config = read_command(["--config", str(checkpoint / "config.yaml")]).config
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        saved = {name: file.get_tensor(name).shape for name in list(file.keys())}
    model = load_checkpoint(checkpoint, config)[0]
    assert saved == {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    in_encoder = {name for name in saved if name.startswith("encoder.")}
    assert all(".lora_" in name for name in in_encoder) == (config.adapters is not None) and in_encoder
    assert {name.split(".")[1] for name in saved.keys() - in_encoder} == ALL_TASKS.keys()


def test_full_fine_tuning_is_used_without_the_encoder_it_began_with(folder, encoders, tmp_path):
    copy = tmp_path / "moved"
    shutil.copytree(folder / "checkpoints" / "step-00000008", copy)
    config = read_command(["--config", str(copy / "config.yaml"), "--model.encoder", "no/such-encoder"]).config
    row = {"text": "the cat"}
    assert Predictor(str(copy), config=config)(row, "animal") == Predictor(str(folder))(row, ["animal"])


def test_an_encoder_with_positions_that_are_computed(train, mixture_config, encoders, tmp_path, monkeypatch):
    """DistilBERT's sine waves are parameters that come without gradients when it is made, and with when it is loaded."""
    monkeypatch.setattr(ENCODER_CONFIGS["distilbert"], "sinusoidal_pos_embds", True)
    shutil.copytree(encoders("distilbert"), tmp_path / "waves")
    transformers.AutoModel.from_config(ENCODER_CONFIGS["distilbert"]).save_pretrained(tmp_path / "waves")
    mixture_config["model"]["encoder"] = str(tmp_path / "waves")
    predictor = Predictor(str(train()))
    exported = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "export" / "animal")
    ours = {f"distilbert.{name}": p for name, p in predictor.model.encoder.named_parameters()}
    ours |= dict(predictor.model.tasks["animal"].named_parameters())
    theirs = dict(exported.named_parameters())
    assert ours.keys() == theirs.keys()
    assert [name for name, p in theirs.items() if not torch.equal(p, ours[name])] == []


def test_a_model_card_says_what_was_trained_and_how_good_it_is(folder):
    from huggingface_hub import ModelCard

    results = json.loads((folder / "metrics.json").read_text())["tasks"]
    codes = []
    for name in ALL_TASKS:
        card = ModelCard.load(folder / "export" / name / "README.md")
        found = {r.metric_type: r.metric_value for r in card.data.eval_results}
        assert found == results[name]
        for words in (
            "run_multitask.py --config",
            "transformers 5",
            f"{name}.jsonl",
            "60 rows" if name == "similar" else "rows",
        ):
            assert words in card.content, (name, words)
        assert all(f"| {metric} | {value:.4f} |" in card.content for metric, value in found.items())
        codes.append(card.content.split("```python\n")[1].split("```")[0])
    alone = [f"exec({code!r}, {{}})" for code in codes]  # each without what the others define
    program = [sys.executable, "-c", "\n".join(alone)]
    done = subprocess.run(program, cwd=folder / "export", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and len(codes) == 6, done.stderr


# -- predict ----------------------------------------------------------------------------------------------------------


@both_ways
def test_answers_are_those_of_the_exported_models(folder, task_files):
    predictor = Predictor(str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "export" / "animal")
    rows = {name: read_jsonl(Path(task_files[name]["validation"])) for name in ALL_TASKS}

    def outputs(name, *texts):
        auto = predictor.tasks[name].type.auto_class
        model = auto.from_pretrained(folder / "export" / name).eval()
        inputs = tokenizer(*texts, return_tensors="pt", padding=True, truncation=True, max_length=64)
        if name == "choice":
            inputs = {key: value[None] for key, value in inputs.items()}
        with torch.no_grad():
            return model(**inputs)

    for name, of_task in rows.items():
        answers = predictor(of_task, [name])
        assert len(answers) == 17
        for row, answer in list(zip(of_task, answers, strict=True))[:5]:
            answer = answer[name]
            if name == "similar":
                assert answer["score"] == pytest.approx(outputs(name, row["a"], row["b"]).logits.item(), abs=1e-5)
            elif name == "animal":
                probabilities = outputs(name, row["a"]).logits[0].softmax(-1).tolist()
                assert list(answer["probabilities"].values()) == pytest.approx(probabilities, abs=1e-5)
                assert answer["label"] == ("animal", "none")[probabilities.index(max(probabilities))]
                assert answer["score"] == pytest.approx(max(probabilities), abs=1e-5)
            elif name == "topics":
                probabilities = outputs(name, row["a"]).logits[0].sigmoid().tolist()
                assert list(answer["probabilities"].values()) == pytest.approx(probabilities, abs=1e-5)
                names = list(answer["probabilities"])
                assert answer["labels"] == [n for n, p in zip(names, probabilities, strict=True) if p > 0.5]
            elif name == "choice":
                logits = outputs(name, [row["question"]] * 3, row["choices"]["text"]).logits[0]
                assert answer["probabilities"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
                assert answer["label"] == "xyz"[answer["choice"]] and answer["choice"] == logits.argmax().item()
            elif name == "tags":
                logits = outputs(name, " ".join(row["words"])).logits[0, 1:-1]  # here each word is a token
                labels = [("B-ANIMAL", "O")[i] for i in logits.argmax(-1).tolist()]
                assert answer["labels"] == labels and len(labels) == len(row["words"])
                assert answer["scores"] == pytest.approx(logits.softmax(-1).max(-1).values.tolist(), abs=1e-5)
            else:
                assert answer["answer"] == (
                    "" if answer["start"] is None else row["context"][answer["start"] : answer["end"]]
                )
                assert 0 < answer["score"] <= 1


@both_ways
def test_asking_several_tasks_at_once_changes_no_answer(folder):
    predictor = Predictor(str(folder))
    rows = [ROW, ROW | {"text": "the big red bird sings in the tree", "text_pair": "the river"}, ROW | {"text": "a"}]
    together = predictor(rows)
    assert all(list(answer) == list(ALL_TASKS) for answer in together)
    for name in ALL_TASKS:
        for row, answer in zip(rows, together, strict=True):
            (alone,) = predictor(row, [name]).values()
            for key, value in alone.items():
                assert flat(answer[name][key]) == flat(value), (name, key)


def flat(value):
    """Numbers up to the rounding of sums over batches of other sizes."""
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, list):
        return [flat(item) for item in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def test_the_encoder_computes_once_for_tasks_that_read_the_same(folder, monkeypatch):
    predictor = Predictor(str(folder))
    calls = []
    layer = predictor.model.encoder.encoder.layer[0]
    layer.register_forward_hook(lambda *_: calls.append(1))
    predictor([ROW] * 3, ["animal", "topics", "tags"])
    assert len(calls) == 1  # the same single text
    predictor([ROW] * 3, ["animal", "topics", "similar"])
    assert len(calls) == 3  # one text, and two texts
    predictor([ROW] * 3)
    assert len(calls) == 3 + 3  # one text, two texts (also as question and context), choices


@pytest.mark.parametrize("folder", SCOPES[1:2], indirect=True, ids=["per_task"])
def test_tasks_with_adapters_of_their_own_are_computed_alone(folder):
    predictor = Predictor(str(folder))
    calls = []
    predictor.model.encoder.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    predictor(ROW, ["animal", "topics", "tags"])
    assert len(calls) == 3


def predictions(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(encoding="utf-8")))
    return read_jsonl(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_of_rows_are_answered_in_their_order(folder, tmp_path, kind, capsys, monkeypatch):
    monkeypatch.setattr("multitask.inference.predictor.CHUNK", 7)  # several chunks, the last one short
    texts = [" ".join(["cat", "dog", "bird"][: 1 + i % 3] * (1 + i % 5)) for i in range(24)]
    rows = [{"text": text, "text_pair": f"the {text}"} for text in texts]
    source, target = tmp_path / f"rows.{kind}", tmp_path / f"answers.{kind}"
    if kind == "jsonl":
        write_jsonl(source, rows)
    else:
        import pandas

        frame = pandas.DataFrame(rows)
        frame.to_csv(source, index=False) if kind == "csv" else frame.to_parquet(source)
    names = ["similar", "animal", "topics", "tags", "find"]
    paths = ["--input", str(source), "--output", str(target)]
    run_mode("predict", "--checkpoint", str(folder), "--tasks", ",".join(names), *paths)
    assert f"24 rows predicted in {target}" in capsys.readouterr().out
    found, expected = predictions(target), Predictor(str(folder))(rows, names)
    assert [int(line["row"]) for line in found] == list(range(24))
    for line, answer in zip(found, expected, strict=True):
        if kind == "jsonl":
            assert list(line) == ["row", "fields", *names] and line["fields"] == rows[line["row"]]
            assert line["animal"]["label"] == answer["animal"]["label"]
            assert line["tags"]["labels"] == answer["tags"]["labels"]
        else:
            read = json.loads if kind == "csv" else list
            assert line["animal.label"] == answer["animal"]["label"]
            assert float(line["animal.probabilities.none"]) == pytest.approx(
                answer["animal"]["probabilities"]["none"], abs=1e-5
            )
            assert read(line["tags.labels"]) == answer["tags"]["labels"]
            assert read(line["topics.labels"]) == answer["topics"]["labels"]
            assert line["find.answer"] == answer["find"]["answer"]
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.bad.jsonl"))


def test_two_processes_answer_as_one(folder, program, tmp_path):
    rows = [{"text": " ".join(["cat"] * (1 + i % 9))} for i in range(9)] + [{"wrong": 1}]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    common = ["--mode", "predict", "--checkpoint", str(folder), "--tasks", "animal", "--input", str(source)]
    for processes in (1, 2):
        target = tmp_path / f"{processes}.jsonl"
        done = program(*common, "--output", str(target), "--skip_bad_rows", processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"9 rows predicted in {target}; 1 left out, see {target}.bad.jsonl"
    one, two = read_jsonl(tmp_path / "1.jsonl"), read_jsonl(tmp_path / "2.jsonl")
    assert [line["row"] for line in one] == [line["row"] for line in two] == list(range(9))
    for first, second in zip(one, two, strict=True):
        assert first["animal"]["score"] == pytest.approx(second["animal"]["score"], abs=1e-5)


def test_bad_rows_are_left_out_counted_and_kept_elsewhere(folder, tmp_path, capsys, monkeypatch):
    source, target = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    lines = ['{"a": "cat"}', "not json", "", '{"b": "dog"}', '{"a": ["x"]}', "[1]", '{"a": "the dog"}']
    source.write_text("\n".join(lines) + "\n")
    options = ["--checkpoint", str(folder), "--tasks", "animal", "--input", str(source), "--output", str(target)]
    run_mode("predict", *options, "--skip_bad_rows")
    assert [line["row"] for line in read_jsonl(target)] == [0, 5]  # the empty line does not count
    bad = read_jsonl(tmp_path / "answers.jsonl.bad.jsonl")
    assert [line["row"] for line in bad] == [1, 2, 3, 4]
    assert bad[1]["error"] == "lacks the field 'a' (or 'text') that task animal reads (fields: b)"
    assert bad[1]["fields"] == {"b": "dog"} and bad[0]["fields"] is None
    assert "is not JSON" in bad[0]["error"] and "not one JSON object" in bad[3]["error"]
    assert f"2 rows predicted in {target}; 4 left out, see {target}.bad.jsonl" in capsys.readouterr().out

    with pytest.raises(UserError) as caught:
        run_mode("predict", *options)
    assert str(caught.value).startswith(f"--input: {source} row 1 is not JSON: Expecting value")
    ending = f"; --skip_bad_rows leaves such rows out (1 answers before it are in {target}.partial)"
    assert str(caught.value).endswith(ending)
    assert [line["row"] for line in read_jsonl(tmp_path / "answers.jsonl.partial")] == [0]  # nothing is lost
    write_jsonl(source, [{"a": "cat"}] * 9 + [{}])
    monkeypatch.setattr("multitask.inference.predictor.CHUNK", 4)
    with pytest.raises(UserError, match=r"row 9 lacks .* \(9 answers before it are in"):
        run_mode("predict", *options)
    assert not (tmp_path / "answers.jsonl.bad.jsonl").exists()  # that of the time before is no longer true
    source.write_text('{"c": 1}\n')
    with pytest.raises(UserError, match="rows.jsonl has no row that can be answered \\(1 left out\\)"):
        run_mode("predict", *options, "--skip_bad_rows")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 1 lacks the field 'b' (or 'text_pair') that task similar reads (fields: text)"),
        (
            {"text": "a", "bb": "x"},
            "row 1 lacks the field 'b' (or 'text_pair') that task similar reads; did you mean 'bb'? (fields: bb, text)",
        ),
        ({"text": "a", "b": {"c": 1}}, "row 1 holds a dict in field 'b', not a text for task similar"),
    ],
)
def test_a_field_that_is_missing_is_named(folder, row, message):
    with pytest.raises(UserError) as caught:
        Predictor(str(folder))([ROW, row], ["similar"])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            "choice",
            {"text": "a"},
            "row 0 lacks the field 'choices.text' (or 'choices') that task choice reads (fields: text)",
        ),
        (
            "choice",
            {"text": "a", "choices": ["x"]},
            "row 0 holds ['x'] as choices, not a list of 2 to 3 texts for task choice",
        ),
        (
            "choice",
            {"text": "a", "choices": ["x", "y \ud800", "z"]},
            "row 0 holds half a character in its choices, which is no Unicode",
        ),
        (
            "choice",
            {"text": "a", "choices": ["x", None, "z"]},
            "row 0 holds ['x', None, 'z'] as choices, not a list of 2 to 3 texts for task choice",
        ),
        ("animal", {"text": "a \ud800"}, "row 0 holds half a character in field 'text', which is no Unicode"),
        ("animal", {"text": b"a"}, "row 0 holds a bytes in field 'text', not a text for task animal"),
        ("animal", 5, "row 0 is 5, not a mapping of fields"),
        ("tags", {"words": []}, "row 0 holds [] in field 'words', which are no words for task tags"),
        ("tags", {"text": "  "}, "row 0 holds [] in field 'text', which are no words for task tags"),
        (
            "find",
            {"question": "a"},
            "row 0 lacks the field 'context' (or 'context' or 'text_pair') that task find reads (fields: question)",
        ),
        (
            "anmal",
            {"text": "a"},
            "tasks: there is no task 'anmal'; did you mean 'animal'? (tasks: animal, choice, find, similar, tags, topics)",
        ),
    ],
)
def test_what_a_task_cannot_answer_is_said(folder, task, row, message):
    with pytest.raises(UserError) as caught:
        Predictor(str(folder))([row], [task])
    assert str(caught.value) == message.replace("(or 'context' or 'text_pair')", "(or 'text_pair')")


# -- what a user may get wrong on the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--mode predct",
            "--mode: unknown value 'predct'; did you mean 'predict'? (valid: evaluate, export, predict, train)",
        ),
        ("--mode evaluate", "--checkpoint is missing; --mode evaluate needs one, as --checkpoint runs/quickstart"),
        ("--mode evaluate --checkpoint", "--checkpoint: expected one argument"),
        ("--mode evaluate --checkpoint nowhere", f"--checkpoint: nowhere is no folder (seen from {ROOT})"),
        (
            "--mode evaluate --checkpoint tests",
            f"--checkpoint: tests is neither a checkpoint nor a run with one (seen from {ROOT})",
        ),
        (
            "--mode export --checkpoint RUN --input x",
            "--input: has no effect with --mode export; it belongs to predict",
        ),
        (
            "--config x.yaml --checkpoint RUN",
            "--checkpoint: has no effect with --mode train; it belongs to evaluate, predict, export",
        ),
        (
            "--mode export --checkpoint RUN --dry_run",
            "--dry_run: has no effect with --mode export; it belongs to train",
        ),
        (
            "--mode predict --checkpoint RUN --input rows.jsonl",
            "--output is missing; --mode predict reads rows from a file and writes to another",
        ),
        (
            "--mode export --checkpoint RUN --tasks tag",
            "--tasks: there is no task 'tag'; did you mean 'tags'? (tasks: animal, choice, find, similar, tags, topics)",
        ),
        (
            "--mode export --chekpoint RUN",
            "--checkpoint is missing; --mode export needs one, as --checkpoint runs/quickstart",
        ),
        (
            "--mode export --checkpoint RUN --tasks ,",
            "--tasks: names no task (tasks: animal, choice, find, similar, tags, topics)",
        ),
        ("--mode export --checkpoint RUN --outptu x", "--outptu: unknown option; did you mean '--output'? (options: "),
    ],
)
def test_mistakes_in_flags(folder, options, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as caught:
        read_command(options.replace("RUN", str(folder)).split())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            "rows.txt",
            "out.jsonl",
            "--input: rows.txt is of no known kind (endings: .csv, .json, .jsonl, .parquet, .tsv)",
        ),
        (
            "rows.jsonl",
            "out.json",
            "--output: out.json is of no known kind; did you mean '.jsonl'? (endings: .csv, .jsonl, .parquet)",
        ),
        ("none.jsonl", "out.jsonl", "--input: there is no file none.jsonl (seen from "),
        ("rows.jsonl", "no/out.jsonl", "--output: there is no folder no (seen from "),
        ("rows.jsonl", "rows.jsonl", "--output: rows.jsonl would replace the input rows.jsonl"),
        ("broken.parquet", "out.jsonl", "--input: broken.parquet cannot be read: "),
        ("latin.csv", "out.jsonl", "--input: latin.csv cannot be read: 'utf-8' codec can't decode"),
        ("ragged.csv", "out.jsonl", "--input: ragged.csv row 0 has 3 fields, the head line 1; --skip_bad_rows leaves"),
        ("empty.jsonl", "out.parquet", "--input: empty.jsonl has no row that can be answered (0 left out)"),
    ],
)
def test_mistakes_in_files(folder, tmp_path, monkeypatch, source, target, message):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [{"a": "cat"}])
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.parquet").write_text("PAR1")
    (tmp_path / "latin.csv").write_bytes("a\ncafé\n".encode("latin-1"))
    (tmp_path / "ragged.csv").write_text("a\nx,y,z\n")
    with pytest.raises(UserError) as caught:
        run_mode("predict", "--checkpoint", str(folder), "--tasks", "animal", "--input", source, "--output", target)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("folder", SCOPES[1:2], indirect=True, ids=["per_task"])
def test_weights_of_another_run_are_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder / "checkpoints" / "step-00000008", copy)
    with pytest.raises(UserError, match=r"--checkpoint: .*model.safetensors does not fit: encoder\.\S+ has shape"):
        run_mode("evaluate", "--checkpoint", str(copy), "--adapters.rank", "3")
    for path in (copy / "encoder" / "tokenizer.json", copy / "model.safetensors", copy / "state.json"):
        path.unlink()
        missing = path.relative_to(copy)
        with pytest.raises(UserError, match=f"--checkpoint: .*copy is damaged: .*{missing} is missing"):
            Predictor(str(copy))
        shutil.copyfile(folder / "checkpoints" / "step-00000008" / missing, path)
    Predictor(str(copy))


def test_the_newest_checkpoint_is_taken(folder, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step-00000003", "step-00000012", "step-00000013.partial", "step-00000014.damaged"):
        shutil.copytree(folder / "checkpoints" / "step-00000008", checkpoints / name)
    assert find_checkpoint(str(tmp_path / "run")) == checkpoints / "step-00000012"


@pytest.mark.parametrize("folder", SCOPES[1:2], indirect=True, ids=["per_task"])
def test_settings_may_be_overridden_in_every_mode(folder, encoders, tmp_path):
    shutil.copytree(encoders("bert"), tmp_path / "moved" / "bert")
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": "the cat"}])
    options = ["--checkpoint", str(folder), "--tasks", "animal", "--model.encoder", str(tmp_path / "moved" / "bert")]
    run_mode("predict", *options, "--input", str(source), "--output", str(tmp_path / "out.jsonl"))
    (line,) = read_jsonl(tmp_path / "out.jsonl")
    assert line["animal"] == Predictor(str(folder))({"text": "the cat"}, "animal")["animal"]
    with pytest.raises(UserError, match="model.encoder: there is no folder ./gone"):
        run_mode("predict", *options[:-1], "./gone", "--input", str(source), "--output", str(tmp_path / "out.jsonl"))
    # A card says what the run did, not what an export overrides.
    run_mode("export", *options, "--output", str(tmp_path / "e"), "--tasks.animal.label", "b")
    card = (tmp_path / "e" / "animal" / "README.md").read_text()
    assert "label `label`" in card


@pytest.mark.parametrize("folder", SCOPES[1:2], indirect=True, ids=["per_task"])
def test_the_card_of_an_adapter_shows_how_it_is_used(folder, tmp_path, monkeypatch, encoders):
    encoder = encoders("bert")  # on this machine alone, so the card cannot name it
    run_mode("export", "--checkpoint", str(folder), "--adapters.merge", "false", "--output", str(tmp_path / "slim"))
    monkeypatch.chdir(tmp_path / "slim")
    for name in ALL_TASKS:
        code = Path(name, "README.md").read_text().split("```python\n")[1].split("```")[0]
        known: dict = {}
        exec(code.replace("path/to/bert", str(encoder)), known)
        merged = known["model"].eval()
        plain = type(merged).from_pretrained(folder / "export" / name).eval()
        inputs = {"input_ids": torch.tensor([[2, 5, 6, 7, 3]])}
        if name == "choice":
            inputs = {"input_ids": torch.tensor([[[2, 5, 6, 3], [2, 7, 8, 3], [2, 9, 4, 3]]])}
        with torch.no_grad():
            torch.testing.assert_close(logits_of(merged(**inputs)), logits_of(plain(**inputs)), atol=1e-5, rtol=0)


def test_nothing_of_the_users_is_replaced(folder, tmp_path):
    kept = tmp_path / "animal" / "my_data.csv"
    kept.parent.mkdir()
    kept.write_text("x")
    with pytest.raises(UserError, match=r"--output: .*animal holds something that is no exported model; give another"):
        run_mode("export", "--checkpoint", str(folder), "--output", str(tmp_path))
    bad = write_jsonl(tmp_path / "out.jsonl.bad.jsonl", [{"text": "the cat"}])
    options = ["--checkpoint", str(folder), "--tasks", "animal", "--output", str(tmp_path / "out.jsonl")]
    with pytest.raises(UserError, match="--output: .*out.jsonl would replace the input .*out.jsonl.bad.jsonl"):
        run_mode("predict", *options, "--input", str(bad))
    assert kept.read_text() == "x" and read_jsonl(bad) == [{"text": "the cat"}]
    copy = tmp_path / "moved"
    shutil.copytree(folder, copy, symlinks=True)  # its export goes with it, not where its configuration says
    shutil.rmtree(copy / "export")
    run_mode("export", "--checkpoint", str(copy), "--tasks", "animal")
    assert (copy / "export" / "animal" / "config.json").is_file()
    shutil.copytree(folder / "checkpoints" / "step-00000008", tmp_path / "alone")
    with pytest.raises(UserError, match="--output is missing; .*alone is in no run's folder"):
        run_mode("export", "--checkpoint", str(tmp_path / "alone"))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_bad_first_row_is_told_in_every_format(folder, tmp_path, kind):
    source, target = write_jsonl(tmp_path / "rows.jsonl", [{"no": 1}, {"a": "cat"}]), tmp_path / f"out.{kind}"
    options = ["--checkpoint", str(folder), "--tasks", "animal", "--input", str(source), "--output", str(target)]
    with pytest.raises(UserError, match=r"rows.jsonl row 0 lacks the field 'a'"):
        run_mode("predict", *options)
    run_mode("predict", *options, "--skip_bad_rows")
    assert [int(line["row"]) for line in predictions(target)] == [1]
    write_jsonl(source, [{"no": 1}])
    with pytest.raises(UserError, match="has no row that can be answered"):
        run_mode("predict", *options, "--skip_bad_rows")


@pytest.mark.parametrize(
    ("mode", "output", "message"),
    [
        ("predict", "out", "--output: {0} is of no known kind"),
        ("predict", "folder.jsonl", "--output: {0} is a folder"),
        ("evaluate", "nowhere/x.json", "--output: {0} is no file in a folder that exists"),
        ("evaluate", "folder.jsonl", "--output: {0} is no file in a folder that exists"),
        ("export", "file/x", "--output: {0} cannot be made: Not a directory"),
    ],
)
def test_an_output_that_cannot_be_is_told_before_the_work(folder, tmp_path, mode, output, message):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file").write_text("")
    path = str(tmp_path / output)
    source = ["--input", str(write_jsonl(tmp_path / "rows.jsonl", [{"a": "cat"}]))] if mode == "predict" else []
    with pytest.raises(UserError) as caught:
        run_mode(mode, "--checkpoint", str(folder), "--tasks", "animal", "--output", path, *source)
    assert str(caught.value).startswith(message.format(path))


def test_data_with_other_labels_is_refused(folder, tmp_path):
    other = str(write_jsonl(tmp_path / "rows.jsonl", [{"a": "cat", "label": "x"}, {"a": "dog", "label": "y"}]))
    files = json.dumps({"train": other, "validation": other})
    with pytest.raises(UserError, match=r"validation row 0: label 'x' in column 'label' is not one of animal, none"):
        run_mode("evaluate", "--checkpoint", str(folder), "--tasks.animal.data_files", files)


def test_evaluation_needs_only_the_rows_that_it_measures(folder, tmp_path, capsys):
    """Also where its file has not all the labels of the run."""
    rows = str(
        write_jsonl(tmp_path / "rows.jsonl", [{"a": "cat", "label": "animal"}, {"a": "dog", "label": "animal"}])
    )
    files = json.dumps({"train": str(tmp_path / "gone.jsonl"), "validation": rows})
    out = tmp_path / "numbers.json"
    chosen = ["--checkpoint", str(folder), "--tasks", "animal", "--tasks.animal.data_files", files]
    run_mode("evaluate", *chosen, "--output", str(out))
    assert 0 <= json.loads(out.read_text())["tasks"]["animal"]["accuracy"] <= 1
    with pytest.raises(UserError, match=r"data_files.validation: there is no file .*gone.jsonl"):
        files = json.dumps({"train": rows, "validation": str(tmp_path / "gone.jsonl")})
        run_mode("evaluate", *chosen[:-1], files)
