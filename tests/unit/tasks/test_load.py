import gc
import inspect

import datasets
import numpy as np
import pandas
import pytest
from helpers.tasks import make_rows, write_jsonl

from multitask.config.schema import TaskConfig
from multitask.data.columns import value_at
from multitask.errors import UserError
from multitask.model.pretrained import load_tokenizer
from multitask.tasks.load import load_task


@pytest.fixture
def load(encoders, tmp_path):
    """Loads a task from rows: `load([...], [...], type="regression", inputs=["a"])`."""
    tokenizer = load_tokenizer(str(encoders("bert")), 64)

    def run(train, validation=None, max_length=64, **options):
        files = {"train": str(write_jsonl(tmp_path / "train.jsonl", train))}
        if validation is not None:
            files["validation"] = str(write_jsonl(tmp_path / "validation.jsonl", validation))
        options = {"dataset": "json", "data_files": files} | options
        return load_task("t", TaskConfig(**options), tokenizer, max_length)

    return run


def ids(task, split="train"):
    """The tokens of each row's sequences."""
    of_split = getattr(task, split)
    return [[of_split.sequence(row, n) for n in range(of_split.sequences)] for row in range(len(of_split))]


# -- what a row becomes ------------------------------------------------------------------------------------------------


def test_one_and_two_inputs(load):
    rows = [{"a": "the cat", "b": "a dog", "label": 1.0}]
    one = load(rows, type="regression", inputs=["a"])
    two = load(rows, type="regression", inputs=["a", "b"])
    assert ids(one) == [[[2, 4, 6, 3]]]  # [CLS] the cat [SEP]
    assert ids(two) == [[[2, 4, 6, 3, 5, 7, 3]]]
    assert two.train.token_type_ids[np.array([0])].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert two.train.length.tolist() == two.train.tokens.tolist() == [7]


def test_a_choice_is_a_sequence_and_stands_second(load):
    row = {"q": "the cat", "options": ["a dog", "bird"], "label": 1}
    task = load([row], type="multiple_choice", inputs=["q"], choices="options")
    assert ids(task) == [[[2, 4, 6, 3, 5, 7, 3], [2, 4, 6, 3, 8, 3]]]
    assert (task.train.length.tolist(), task.train.tokens.tolist(), task.train.sequences) == ([7], [13], 2)
    assert task.train.row_labels.tolist() == [1]


def test_choices_in_columns_follow_the_second_input(load):
    row = {"ctx": "the cat", "start": "a", "e0": "dog", "e1": "bird", "label": 0}
    task = load([row], type="multiple_choice", inputs=["ctx", "start"], choices=["e0", "e1"])
    assert ids(task) == [[[2, 4, 6, 3, 5, 7, 3], [2, 4, 6, 3, 5, 8, 3]]]
    assert task.labels == ("e0", "e1")


@pytest.mark.parametrize("num_choices", [2, 3, 4, 5, 10])
def test_any_number_of_choices(load, num_choices):
    rows = [{"q": "cat", "options": ["dog"] * num_choices, "label": i} for i in range(num_choices)]
    task = load(rows, type="multiple_choice", inputs=["q"], choices="options")
    assert task.train.row_labels.tolist() == list(range(num_choices)) and task.train.sequences == num_choices


def test_dotted_paths_lead_through_mappings_and_lists(load):
    row = {
        "question": {"stem": "the cat", "choices": [{"label": "A", "text": "dog"}, {"label": "B", "text": "bird"}]},
        "key": "B",
    }
    task = load(
        [row],
        type="multiple_choice",
        inputs=["question.stem"],
        choices="question.choices.text",
        choice_labels="question.choices.label",
        label="key",
    )
    assert ids(task) == [[[2, 4, 6, 3, 7, 3], [2, 4, 6, 3, 8, 3]]]
    assert task.train.row_labels.tolist() == [1]
    assert value_at({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert value_at({"a": [{"b": 1}, {"b": None}]}, "a.b") == [1, None]


@pytest.mark.parametrize(
    ("values", "labels", "numbers"),
    [
        (["yes", "no", "yes"], ("no", "yes"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([-1, 1, -1], ("-1", "1"), [0, 1, 0]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        ([0.5, 0.25, 0.5], ("0.25", "0.5"), [1, 0, 1]),
    ],
)
def test_kinds_of_labels(load, values, labels, numbers):
    task = load([{"a": "cat", "label": v} for v in values], type="classification", inputs=["a"])
    assert (task.labels, task.train.row_labels.tolist()) == (labels, numbers)


@pytest.mark.parametrize(
    ("values", "labels", "numbers"),
    [
        ([["x", "y"], [], ["y"]], ("x", "y"), [[1, 1], [0, 0], [0, 1]]),
        ([[3, 1], [1], [1, 1]], ("1", "3"), [[1, 1], [1, 0], [1, 0]]),
    ],
)
def test_kinds_of_label_lists(load, values, labels, numbers):
    rows = [{"a": "cat", "label": value} for value in values]
    task = load(rows, type="multi_label_classification", inputs=["a"])
    assert (task.labels, task.train.row_labels.tolist()) == (labels, numbers)
    assert task.metrics == ("f1_micro", "f1_macro")


@pytest.mark.parametrize("kind", ["multi_label_classification", "token_classification"])
def test_lists_of_the_hubs_class_labels(load, tmp_path, kind):
    """Their numbers are kept, also those of classes that no row has."""
    features = datasets.Features(
        {
            "a": datasets.List(datasets.Value("string")),
            "label": datasets.List(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
        }
    )
    if kind == "multi_label_classification":
        features["a"] = datasets.Value("string")
    rows = {"a": ["cat dog" if kind.startswith("multi") else ["cat", "dog"]], "label": [[1, 0]]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "rows.parquet")
    files = {"train": str(tmp_path / "rows.parquet")}
    task = load([], type=kind, inputs=["a"], dataset="parquet", data_files=files)
    assert task.labels == ("O", "B-X", "I-X")
    expected = [1, 1, 0] if kind.startswith("multi") else [-100, 1, 0, -100]
    labels = task.train.labels
    assert (labels.tolist() if kind.startswith("multi") else [labels[np.array([0])].tolist()]) == [expected]


def test_a_class_label_in_a_nested_row_keeps_its_names(load, tmp_path):
    features = datasets.Features({"a": datasets.Value("string"), "x": {"y": datasets.ClassLabel(names=["no", "yes"])}})
    rows = datasets.Dataset.from_dict({"a": ["cat", "dog"], "x": [{"y": 1}, {"y": 1}]}, features)
    rows.to_parquet(tmp_path / "rows.parquet")
    files = {"train": str(tmp_path / "rows.parquet")}
    task = load([], type="classification", inputs=["a"], label="x.y", dataset="parquet", data_files=files)
    assert (task.labels, task.train.row_labels.tolist()) == (("no", "yes"), [1, 1])


@pytest.mark.parametrize("column", ["a", "label"])
def test_nothing_is_no_text_and_no_class(load, tmp_path, column):
    """NaN is how tables say that a field is empty, and bytes are no text."""
    rows = {"a": ["cat", "dog", "dog"], "label": ["x", "y", "y"]}
    options = {"type": "classification", "inputs": ["a"], "dataset": "parquet"}
    files = {"train": str(tmp_path / "rows.parquet")}
    datasets.Dataset.from_dict(rows | {column: [1.0, 2.0, float("nan")]}).to_parquet(files["train"])
    if column == "label":
        task = load([], data_files=files, **options)
        assert len(task.train) == 2 and task.notes == ("1 of 3 rows of train have no label and are left out",)
    else:
        with pytest.raises(UserError, match="tasks.t: train row 2: column 'a' is empty"):
            load([], data_files=files, **options)
    datasets.Dataset.from_dict(rows | {column: [b"x", b"y", b"z"]}).to_parquet(files["train"])
    with pytest.raises(UserError, match="holds (a bytes, not a text|b'.'; a class is a text or a number)"):
        load([], data_files=files, **options)


def test_what_is_cached_is_what_this_code_encodes(load, tmp_path, monkeypatch):
    """`datasets` knows a function by its name alone; a new version of it must not find the old one's rows."""
    rows = [{"a": "cat", "b": "dog", "label": number} for number in (1.5, 2.5)]
    files = {"train": str(write_jsonl(tmp_path / "rows.jsonl", rows))}
    options = {"type": "regression", "inputs": ["a"], "data_files": files}

    def fingerprint(**changes) -> str:
        return load([], **options | changes).train.notes._fingerprint

    tokenizer = inspect.getclosurevars(load).nonlocals["tokenizer"]
    before = fingerprint()
    tokenizer("the cat", truncation=True, max_length=8)  # which changes how it is set, and not what it is
    assert fingerprint() == before
    changes = {"max_length": 32}, {"inputs": ["b"]}, {"type": "classification"}, {"max_train_examples": 1}
    found = [before, *(fingerprint(**change) for change in changes)]
    tokenizer.add_tokens("hamster")
    found.append(fingerprint())
    monkeypatch.setattr(inspect, "getsource", lambda module: "another version")
    found.append(fingerprint())
    assert len(set(found)) == len(found) == 7


def test_splits_may_write_the_same_label_differently(load):
    """A column of whole numbers becomes one of floats as soon as a file has an empty cell in it."""
    train = [{"a": "cat", "label": 1}, {"a": "dog", "label": 0}]
    options = {"type": "classification", "inputs": ["a"]}
    for value in (1.0, "1", 1):
        task = load(train, [{"a": "cat", "label": value}], **options)
        assert task.validation.row_labels.tolist() == [1]


def test_the_right_choice_may_be_a_float_or_a_boolean(load):
    rows = [{"q": "cat", "options": ["a", "b"], "label": value} for value in (True, False)]
    options = {"type": "multiple_choice", "inputs": ["q"], "choices": "options"}
    assert load(rows, **options).train.row_labels.tolist() == [1, 0]
    assert load([row | {"label": float(row["label"])} for row in rows], **options).train.row_labels.tolist() == [1, 0]


def test_minus_one_is_a_label_where_train_has_it(load):
    train = [{"a": "cat", "label": -1}, {"a": "dog", "label": 1}]
    for kind in ("classification", "regression"):
        task = load(train, train[:1], type=kind, inputs=["a"])
        assert len(task.validation) == 1
        assert load(train[1:] * 2 + [train[1] | {"label": 0}], train[:1], type=kind, inputs=["a"]).validation is None


def test_a_csv_file_says_what_it_says(load, tmp_path):
    """What pandas would take for a missing value is a text like any other."""
    path = tmp_path / "words.csv"
    path.write_text('text,topic\nNA,None\n"cat, ""dog""\nbird",null\nnull,None\n')
    task = load(
        [], type="classification", dataset="csv", data_files={"train": str(path)}, inputs=["text"], label="topic"
    )
    assert task.labels == ("None", "null") and task.train.row_labels.tolist() == [0, 1, 0]
    path.write_text("text,topic\ncat,1\ndog,\n")
    task = load([], type="regression", dataset="csv", data_files={"train": str(path)}, inputs=["text"], label="topic")
    assert task.train.row_labels.tolist() == [1] and "1 of 2 rows of train" in task.notes[0]


def hub_folder(tmp_path, train, validation=None, features=None):
    """A folder in the shape of a hub repository with Parquet files, as data_root holds them."""
    folder = tmp_path / "root" / "me" / "set"
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", validation)):
        if rows is not None:
            datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return {"dataset": "me/set", "data_files": None}, str(tmp_path / "root")


def test_class_labels_of_a_folder_under_data_root(encoders, tmp_path):
    features = datasets.Features({"a": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    rows = [{"a": "cat", "label": 1}, {"a": "dog", "label": 0}]
    options, root = hub_folder(tmp_path, rows, [{"a": "bird", "label": -1}], features)
    tokenizer = load_tokenizer(str(encoders("bert")), 64)
    task = load_task("t", TaskConfig(type="classification", inputs=["a"], **options), tokenizer, 64, root)
    assert (task.labels, task.train.row_labels.tolist()) == (("pos", "neg"), [1, 0])
    assert task.validation is None  # its labels are hidden, as those of a hub's test split


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_local_files(encoders, tmp_path, kind):
    rows = make_rows("classification", 20)
    frame = pandas.DataFrame(rows)
    path = tmp_path / f"data.{kind}"
    writers = {"csv": lambda: frame.to_csv(path, index=False), "parquet": lambda: frame.to_parquet(path)}
    writers.get(kind, lambda: write_jsonl(path, rows))()
    config = TaskConfig(type="classification", dataset=kind, inputs=["a", "b"], data_files={"train": str(path)})
    task = load_task("t", config, load_tokenizer(str(encoders("bert")), 64), 64)
    assert len(task.train) == 20 and task.validation is None and task.labels == ("animal", "none")
    assert [task.labels[i] for i in task.train.row_labels] == [row["label"] for row in rows]


def test_a_sample_of_the_examples_is_always_the_same_and_said(load):
    rows = [{"a": f"cat {number}", "label": number / 10} for number in range(30)]  # sorted
    options = {"type": "regression", "inputs": ["a"], "max_train_examples": 7, "max_eval_examples": 100}
    task, again = (load(rows, rows, **options) for _ in range(2))
    assert gc.isenabled()  # it pauses while rows are tokenised
    assert (len(task.train), len(task.validation)) == (7, 30)
    found = task.train.row_labels.tolist()
    assert found == sorted(found) == again.train.row_labels.tolist() and found[-1] > 1.5  # not the first rows
    assert task.notes == ("7 of 30 rows of train are taken, a sample that is always the same",)


def test_long_sequences_are_cut_longest_first_and_counted(load):
    rows = [{"a": "cat " * 10, "b": "dog " * 3, "label": 1.0}, {"a": "cat", "b": "dog", "label": 2.0}]
    task = load(rows, rows, max_length=12, type="regression", inputs=["a", "b"])
    assert ids(task)[0] == [[2, *[6] * 6, 3, *[7] * 3, 3]]
    assert (task.train.truncated, task.validation.truncated) == (1, 1)


def test_the_second_time_nothing_is_tokenised(load, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "stays.jsonl", make_rows("classification", 25, seed=9))
    options = {"type": "classification", "inputs": ["a"], "data_files": {"train": str(path)}}
    first = load([], **options)

    def refuse(*args, **kwargs):
        raise AssertionError("tokenised again")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.__call__", refuse)
    again = load([], **options, weight=3.0, metrics=["f1"])  # settings that change no sequence
    assert ids(first) == ids(again)
    with pytest.raises(AssertionError, match="tokenised again"):
        load([], max_length=32, **options)


def test_default_metrics(load):
    rows = make_rows("regression", 4)
    assert load(rows, type="regression", inputs=["a"]).metrics == ("pearson", "spearmanr")
    assert load(rows, type="regression", inputs=["a"], metrics=["mse"]).metrics == ("mse",)


# -- what a user may get wrong: (train rows, validation rows, options, what is printed) --------------------------------

CLASSES = [{"a": "cat", "label": "x"}, {"a": "dog", "label": "y"}]
CHOICES = [{"q": "cat", "options": ["a", "b"], "names": ["A", "B"], "label": "A"}]
CLASSIFY = {"type": "classification", "inputs": ["a"]}
CHOOSE = {"type": "multiple_choice", "inputs": ["q"], "choices": "options", "choice_labels": "names"}
MISTAKES = {
    "unknown label": (
        CLASSES,
        [{"a": "cat", "label": "z"}],
        CLASSIFY,
        "tasks.t: validation row 0: label 'z' in column 'label' is not one of x, y",
    ),
    "empty labels": (
        [row | {"label": None} for row in CLASSES],
        None,
        CLASSIFY,
        "tasks.t.label: 'label' holds [] in train; there is nothing to learn",
    ),
    "one class": (
        CLASSES[:1],
        None,
        CLASSIFY,
        "tasks.t.label: 'label' holds ['x'] in train; a class needs another class",
    ),
    "empty text": ([*CLASSES, {"a": None, "label": "x"}], None, CLASSIFY, "tasks.t: train row 2: column 'a' is empty"),
    "no column": (
        CLASSES,
        None,
        CLASSIFY | {"inputs": ["aa"]},
        "tasks.t.inputs: train has no column 'aa'; did you mean 'a'? (columns: a, label)",
    ),
    "no label column": (
        CLASSES,
        None,
        CLASSIFY | {"label": "lable"},
        "tasks.t.label: train has no column 'lable'; did you mean 'label'? (columns: a, label)",
    ),
    "no column in validation": (
        CLASSES,
        [{"b": "cat", "label": "x"}],
        CLASSIFY,
        "tasks.t.inputs: validation has no column 'a' (columns: b, label)",
    ),
    "names of choices twice": (
        [CHOICES[0] | {"names": ["A", "A"]}],
        None,
        CHOOSE,
        "tasks.t: train row 0: column 'names' holds ['A', 'A'], a name twice",
    ),
    "not a list of labels": (
        CLASSES,
        None,
        CLASSIFY | {"type": "multi_label_classification"},
        "tasks.t: train row 0: column 'label' holds 'x', not a list of labels",
    ),
    "unknown label in a list": (
        [{"a": "cat", "label": ["x", "y"]}],
        [{"a": "cat", "label": ["x", "z"]}],
        CLASSIFY | {"type": "multi_label_classification"},
        "tasks.t: validation row 0: label 'z' in column 'label' is not one of x, y",
    ),
    "no label in any list": (
        [{"a": "cat", "label": []}],
        None,
        CLASSIFY | {"type": "multi_label_classification"},
        "tasks.t.label: 'label' holds [] in train; there is nothing to learn",
    ),
    "not a number": (
        [{"a": "cat", "label": "high"}],
        None,
        CLASSIFY | {"type": "regression"},
        "tasks.t: train row 0: label 'high' in column 'label' is not a finite number",
    ),
    "not a text": (
        [{"a": ["cat"], "label": 1}],
        None,
        CLASSIFY | {"type": "regression"},
        "tasks.t: train row 0: column 'a' holds a list, not a text",
    ),
    "too few choices": (
        [*CHOICES, CHOICES[0] | {"options": ["a"]}],
        None,
        CHOOSE,
        "tasks.t: train row 1: 1 choices; rows have 2 to 2, which is the most in train",
    ),
    "too many choices": (
        CHOICES,
        [CHOICES[0] | {"options": ["a", "b", "c"]}],
        CHOOSE,
        "tasks.t: validation row 0: 3 choices; rows have 2 to 2, which is the most in train",
    ),
    "unknown choice": (
        [CHOICES[0] | {"label": "C"}],
        None,
        CHOOSE,
        "tasks.t: train row 0: label 'C' in column 'label' is not one of A, B",
    ),
    "choices not a list": (
        [CHOICES[0] | {"options": "a b"}],
        None,
        CHOOSE,
        "tasks.t.choices: 'options' holds 'a b', not a list of two or more choices",
    ),
    "choice out of range": (
        [{"q": "cat", "options": ["a", "b"], "label": 3}],
        None,
        CHOOSE | {"choice_labels": None},
        "tasks.t: train row 0: label 3 in column 'label' is not one of a, b",
    ),
    "names of choices missing": (
        [CHOICES[0], CHOICES[0] | {"names": None}],
        None,
        CHOOSE,
        "tasks.t: train row 1: column 'names' holds None, not the names of the choices",
    ),
    "names of choices in one text": (
        [CHOICES[0] | {"names": "AB"}],
        None,
        CHOOSE,
        "tasks.t: train row 0: column 'names' holds 'AB', not the names of the choices",
    ),
    "a list of classes": (
        [{"a": "cat", "label": ["x"]}],
        None,
        CLASSIFY,
        "tasks.t.label: 'label' holds ['x']; a class is a text or a number",
    ),
    "many classes": (
        [{"a": "cat", "label": i} for i in range(30)],
        [{"a": "cat", "label": 30}],
        CLASSIFY,
        "tasks.t: validation row 0: label 30 in column 'label' is not one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, … (30 in all)",
    ),
    "no validation split": (
        CLASSES,
        CLASSES,
        CLASSIFY | {"validation_split": "dev"},
        "tasks.t.validation_split: json has no split 'dev' (splits: train, validation)",
    ),
    "no train split": (
        CLASSES,
        CLASSES,
        CLASSIFY | {"train_split": "trian"},
        "tasks.t.train_split: json has no split 'trian'; did you mean 'train'? (splits: train, validation)",
    ),
    "wrong metric": (
        CLASSES,
        None,
        CLASSIFY | {"metrics": ["pearson"]},
        "tasks.t.metrics: pearson does not measure classification (valid: accuracy, f1, matthews_correlation)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_data(load, mistake):
    train, validation, options, message = MISTAKES[mistake]
    with pytest.raises(UserError) as raised:
        load(train, validation, **options)
    assert str(raised.value) == message


def test_mistakes_with_files_and_folders(load, encoders, tmp_path):
    rows = [{"a": "cat", "label": "x"}, {"a": "dog", "label": "y"}]
    options, root = hub_folder(tmp_path, rows)
    tokenizer = load_tokenizer(str(encoders("bert")), 64)
    empty, broken, good = tmp_path / "empty.jsonl", tmp_path / "broken.jsonl", tmp_path / "good.jsonl"
    empty.write_text("")
    broken.write_text('{"a": "cat", "label": "x"}\n{"a": "dog", "la\n')
    write_jsonl(good, rows)

    def message(data_root=None, **changes):
        config = TaskConfig(**{"type": "classification", "dataset": "json", "inputs": ["a"]} | changes)
        with pytest.raises(UserError) as raised:
            load_task("t", config, tokenizer, 64, data_root)
        return str(raised.value)

    assert message(data_files={"train": "no.jsonl"}).startswith(
        "tasks.t.data_files.train: there is no file no.jsonl ("
    )
    assert message(data_files={"train": str(good), "validation": "no.jsonl"}).startswith(
        "tasks.t.data_files.validation"
    )
    assert message(data_files={"train": str(empty)}) == f"tasks.t.data_files.train: {empty} has no rows"
    assert message(data_files={"train": []}) == "tasks.t.data_files.train: there is no file in the list"
    assert (
        message(data_files={"train": str(tmp_path)}) == f"tasks.t.data_files.train: {tmp_path} is a folder, not a file"
    )
    header = tmp_path / "header.csv"
    header.write_text("a,label\n")
    assert "header.csv" in message(dataset="csv", data_files={"train": str(header)})
    assert message(dataset="./nowhere").startswith("tasks.t.dataset: there is no folder ./nowhere (seen from ")
    assert "; did you mean 'csv'? (formats of local files: csv, json, jsonl, parquet, tsv)" in message(dataset="cvs")
    assert message(data_files={"train": str(broken)}).startswith(
        f"tasks.t.data_files.train: {broken} row 1 is not JSON: "
    )
    assert message(dataset="me/sett", data_root=root) == (
        "tasks.t.dataset: the hub cannot be reached for 'me/sett', "
        f"and it is not in data_root {root}; did you mean 'me/set'? (there: me/set)"
    )
    assert message(dataset="me/other") == (
        "tasks.t.dataset: the hub cannot be reached for 'me/other'; --data_root DIR reads it from a folder"
    )
    assert message(dataset="me/set", subset="rt", data_root=root).startswith("tasks.t.subset: rt: BuilderConfig 'rt'")
    assert message(dataset="me/set", data_root=str(good)).startswith(
        f"data_root: there is no folder {good} (seen from"
    )


def test_an_error_in_a_worker_is_the_same_line(encoders, tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"a": "cat", "label": 1.0}] * 30 + [{"a": None, "label": 1.0}])
    config = TaskConfig(type="regression", dataset="json", inputs=["a"], data_files={"train": str(path)})
    with pytest.raises(UserError) as raised:
        load_task("t", config, load_tokenizer(str(encoders("bert")), 64), 64, num_proc=2)
    assert str(raised.value) == "tasks.t: train row 30: column 'a' is empty"
