import json

import numpy as np
import pytest
from helpers.tasks import ALL_TASKS, write_jsonl

from multitask.config.schema import TaskConfig
from multitask.evaluation.error_analysis import NUM_MISTAKES, NUM_WATCHED, describe
from multitask.evaluation.evaluate import compute_logits
from multitask.model.pretrained import load_tokenizer
from multitask.tasks.load import load_task
from multitask.tasks.pictures import MOST_LABELS, confusion


@pytest.fixture(params=["bert", "roberta"])
def seen(make, request):
    """What is shown of each type's predictions by a model that has learned nothing, with its task and logits."""
    model, tasks, tokenizer = make(request.param, ALL_TASKS)
    model.eval()
    found = {}
    for task in tasks:
        split = task.validation
        logits = compute_logits(model, [task.name], split, np.arange(len(split)), tokenizer.pad_token_id, 4096)
        logits = logits[task.name].numpy()
        found[task.name] = describe(task, logits), task, logits
    return found


def test_every_type_has_a_picture_of_all_rows_and_rows_to_watch(seen):
    assert seen.keys() == ALL_TASKS.keys()
    kinds = {name: shown["picture"]["kind"] for name, (shown, _, _) in seen.items()}
    assert kinds == {
        "similar": "scatter",
        "animal": "confusion",
        "choice": "confusion",
        "topics": "bars",
        "tags": "confusion",
        "find": "bars",
    }
    for name, (shown, _, _) in seen.items():
        assert json.loads(json.dumps(shown)) == shown, name
        assert [row["row"] for row in shown["watched"]][::15] == [0, 16] and len(shown["watched"]) == NUM_WATCHED
        assert 0 < len(shown["mistakes"]) <= NUM_MISTAKES and len({row["row"] for row in shown["mistakes"]}) > 1
        for row in shown["watched"] + shown["mistakes"]:
            columns = ["row", "text", "label", "predicted"] + ["confidence"] * (name != "similar")
            assert list(row) == columns and row["text"]
        labels = {row["row"]: row["label"] for row in shown["watched"]}
        assert all(labels.get(row["row"], row["label"]) == row["label"] for row in shown["mistakes"])


def test_pictures_count_every_row(seen):
    assert len(seen["similar"][0]["picture"]["true"]) == 17
    for name in ("animal", "choice"):
        assert np.sum(seen[name][0]["picture"]["counts"]) == 17
    assert np.sum(seen["tags"][0]["picture"]["counts"]) == sum(
        map(len, seen["tags"][1].validation.notes["word_labels"])
    )
    assert np.sum(list(seen["find"][0]["picture"]["bars"].values())) == 17
    true = seen["topics"][1].validation.row_labels
    found = np.asarray(list(seen["topics"][0]["picture"]["bars"].values()))  # found, missed, wrong
    assert found[:, :2].sum() == true.sum()


def test_mistakes_are_those_the_model_is_surest_of(seen):
    shown, task, logits = seen["animal"]
    sure = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = task.validation.row_labels
    wrong = [(sure[row].max(), row) for row in range(17) if logits[row].argmax() != true[row]]
    expected = [row for _, row in sorted(wrong, reverse=True)][:NUM_MISTAKES]
    assert [row["row"] for row in shown["mistakes"]] == expected
    assert all(row["predicted"] != row["label"] for row in shown["mistakes"])
    shown, task, logits = seen["similar"]
    errors = np.abs(logits[:, 0] - task.validation.row_labels)
    assert [row["row"] for row in shown["mistakes"]] == np.argsort(-errors, kind="stable")[:NUM_MISTAKES].tolist()


def test_texts_are_those_of_the_data(make, tmp_path, encoders):
    rows = {
        "choice": {"question": {"stem": "Who's   Höft?"}, "options": ["Ärzte", "B & b"], "answer": "1"},
        "tags": {"words": ["The", "CAT", "can't"], "tags": ["O", "B-ANIMAL", "O"]},
        "find": {"question": "WHERE?", "text": "In Rome (Italy).", "answer": "Rome"},
    }
    read = {
        "choice": {"inputs": ["question.stem"], "choices": "options", "label": "answer"},
        "tags": {"inputs": ["words"], "label": "tags"},
        "find": {"inputs": ["question", "text"], "label": "answer"},
    }
    shown = {}
    for name, row in rows.items():
        path = str(write_jsonl(tmp_path / f"{name}.jsonl", [row] * 3))
        files = {"train": path, "validation": path}
        config = TaskConfig(type=ALL_TASKS[name]["type"], dataset="json", data_files=files, **read[name])
        task = load_task(name, config, load_tokenizer(str(encoders("bert")), 64), 64)
        logits = np.zeros((3, 2) if name == "choice" else (3, int(task.validation.length.max()), 2), np.float32)
        shown[name] = describe(task, logits)["watched"][0]
    assert (shown["choice"]["text"], shown["choice"]["label"]) == ("Who's   Höft?", "B & b")
    assert shown["choice"]["predicted"] == "Ärzte"
    assert (shown["tags"]["text"], shown["tags"]["label"]) == ("The CAT can't", "CAT/B-ANIMAL")
    assert (shown["find"]["text"], shown["find"]["label"]) == ("WHERE? | In Rome (Italy).", "Rome")


def test_of_many_labels_the_largest_are_shown_and_the_rest_is_counted():
    true = np.repeat(np.arange(40), np.arange(40) + 1)
    shown = confusion(true, true, [str(number) for number in range(40)])
    assert shown["labels"] == [str(number) for number in range(40 - MOST_LABELS, 40)]
    assert np.sum(shown["counts"]) + shown["others"] == len(true) and shown["others"] == sum(range(1, 21))
