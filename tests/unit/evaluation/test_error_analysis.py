import json

import numpy as np
import pytest
from helpers.tasks import ALL_TASKS

from multitask.evaluation.error_analysis import NUM_MISTAKES, NUM_WATCHED, describe
from multitask.evaluation.evaluate import compute_logits
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
        found[task.name] = describe(task, logits, tokenizer), task, logits
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
            assert row.keys() == {"row", "text", "predicted", "right", "confidence"}
            assert (row["confidence"] is None) == (name == "similar")
            assert row["text"] and "[SEP]" not in row["text"] and "[PAD]" not in row["text"]
        rights = {row["row"]: row["right"] for row in shown["watched"]}
        assert all(rights.get(row["row"], row["right"]) == row["right"] for row in shown["mistakes"])


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
    assert all(row["predicted"] != row["right"] for row in shown["mistakes"])
    shown, task, logits = seen["similar"]
    errors = np.abs(logits[:, 0] - task.validation.row_labels)
    assert [row["row"] for row in shown["mistakes"]] == np.argsort(-errors, kind="stable")[:NUM_MISTAKES].tolist()


def test_texts_are_what_was_read(seen):
    rows = {row["row"]: row for row in seen["choice"][0]["watched"]}
    assert all(row["right"].endswith("river") and "|" not in row["text"] for row in rows.values())
    assert all(" | " in row["text"] for row in seen["similar"][0]["watched"])
    for row in seen["find"][0]["watched"]:
        assert row["text"].startswith("the river | ") and row["right"] and row["predicted"]
    for row in seen["tags"][0]["watched"]:
        animals = [word for word in row["text"].split() if word in ("cat", "dog", "bird", "fish")]
        assert row["right"] == (" ".join(f"{word}/B-ANIMAL" for word in animals) or "O everywhere")


def test_of_many_labels_the_largest_are_shown_and_the_rest_is_counted():
    true = np.repeat(np.arange(40), np.arange(40) + 1)
    shown = confusion(true, true, [str(number) for number in range(40)])
    assert shown["labels"] == [str(number) for number in range(40 - MOST_LABELS, 40)]
    assert np.sum(shown["counts"]) + shown["others"] == len(true) and shown["others"] == sum(range(1, 21))
