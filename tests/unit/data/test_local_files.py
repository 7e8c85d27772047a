"""Text stays text; what no task reads is not read; prediction reads as training does."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import datasets
import pytest

from multitask.config.schema import TaskConfig
from multitask.data.local_files import NULL, Conflict, Kind, read_files, widened
from multitask.data.rows_in_files import read_rows
from multitask.data.sources import load_splits
from multitask.errors import UserError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "multitask"


@pytest.fixture
def read(tmp_path):
    def read(content, kind, *columns, name="rows"):
        path = tmp_path / f"{name}.{kind}"
        path.write_text(content, encoding="utf-8")
        wanted = dict.fromkeys(columns, "tasks.t.inputs")
        return read_files([str(path)], kind, wanted, "tasks.t.data_files.train", "train").to_dict()

    return read


@pytest.mark.parametrize("kind, separator", [("csv", ","), ("tsv", "\t")])
def test_a_cell_is_its_text(read, kind, separator):
    rows = [
        ["text", "label", "other"],
        ["0007", "1.10", "1"],
        ["2020-01-01", "01", "x"],
        ["NA", "", ""],
        ["1e5", "None", "2"],
    ]
    content = "".join(separator.join(row) + "\n" for row in rows)
    assert read(content, kind, "text", "label") == {
        "text": ["0007", "2020-01-01", "NA", "1e5"],
        "label": ["1.10", "01", "", "None"],
    }


def test_types_hold_for_a_whole_file_and_what_is_not_read_ends_nothing(read):
    rows = [{"a": number, "b": "x", "not read": number} for number in range(12_000)]
    rows += [{"a": "late", "b": "y", "not read": {"deep": [1, "two"]}}]
    found = read("".join(json.dumps(row) + "\n" for row in rows), "json", "a", "b")
    assert found["a"][0] == "0" and found["a"][-1] == "late" and found.keys() == {"a", "b"}


def test_json_keeps_dates_numbers_and_nested_values(read):
    rows = [
        {"d": "2020-01-01", "n": 1, "q": {"stem": "a", "other": 3}, "l": ["2020-01-01", "x"]},
        {"d": "2020-01-01T00:00:00", "n": 2.5, "q": {"stem": "0007"}, "l": None},
    ]
    for content in ("\n".join(map(json.dumps, rows)), json.dumps(rows)):
        assert read(content, "json", "d", "n", "q.stem", "l", name=f"r{len(content)}") == {
            "d": ["2020-01-01", "2020-01-01T00:00:00"],
            "n": [1.0, 2.5],
            "q.stem": ["a", "0007"],
            "l": [["2020-01-01", "x"], None],
        }


def test_training_and_prediction_read_the_same(read, tmp_path):
    found = read('text,label\n"a, ""b""\nc",1\n0007,2\n', "csv", "text", "label")
    rows = list(read_rows(str(tmp_path / "rows.csv")))
    assert [row["text"] for row in rows] == found["text"] == ['a, "b"\nc', "0007"]


def test_a_long_field_is_read(read):
    assert len(read("text\n" + "x" * 300_000 + "\n", "csv", "text")["text"][0]) == 300_000


@pytest.mark.parametrize(
    "content, kind, message",
    [
        (
            '{"a": "x"}\n{"a": ["y"]}\n',
            "json",
            "rows.json row 1: column 'a' holds a list, the rows before it hold a text",
        ),
        ('{"a": "x"}\n{"a": "\\ud83d"}\n', "json", "rows.json row 1: column 'a' holds half a character"),
        ('{"a": "x"}\n{"a": \n', "json", "rows.json row 1 is not JSON"),
        ("[1, 2]", "json", "rows.json row 0 holds '1', not one JSON object"),
        ("a,b\nx\n", "csv", "rows.csv row 0 has 1 fields, the head line 2"),
        (
            "b\tc\nx\ty\n",
            "csv",
            "tasks.t.inputs: train has no column 'a' (columns: b\\tc); its columns are divided by tabs: dataset: tsv",
        ),
        (
            "b;a\nx;y\n",
            "csv",
            "(columns: b;a); its columns are divided by semicolons, where dataset: csv takes commas",
        ),
        ("a\n", "csv", "rows.csv has no rows"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(read, content, kind, message):
    with pytest.raises(UserError) as raised:
        read(content, kind, "a")
    assert message in str(raised.value) and str(raised.value).startswith("tasks.t.")


def test_a_file_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"a\n\xe9\n")
    with pytest.raises(
        UserError, match="rows.csv cannot be read: 'utf-8' codec .*; convert it to UTF-8, as with iconv"
    ):
        read_files([str(tmp_path / "rows.csv")], "csv", {"a": "k"}, "key", "train")


def test_changed_content_is_read_anew_also_with_the_same_time(read, tmp_path, cache):
    assert read("a\none\n", "csv", "a")["a"] == ["one"]
    path = tmp_path / "rows.csv"
    before = path.stat()
    path.write_text("a\ntwo\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_files([str(path)], "csv", {"a": "k"}, "key", "train")["a"] == ["two"]
    assert len(list(cache.glob("*.arrow"))) == 2


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no folder that even root cannot write to")
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/proc/nope"))
    (tmp_path / "rows.csv").write_text("a\nx\n")
    with pytest.raises(UserError, match="the cache of `datasets` cannot be written: /proc/nope.*; HF_DATASETS_CACHE"):
        read_files([str(tmp_path / "rows.csv")], "csv", {"a": "k"}, "key", "train")


def test_the_narrowest_type():
    assert widened(NULL, None) == NULL and widened(NULL, 2**70).name == "text"
    assert widened(Kind("int"), 0.5).name == "float" and widened(Kind("int"), True).name == "text"
    with pytest.raises(Conflict):
        widened(Kind("text"), {"a": 1})


def test_the_rows_of_a_copy_are_those_of_the_original(read, tmp_path):
    first = read("a\nx\n", "csv", "a")
    shutil.copy(tmp_path / "rows.csv", tmp_path / "copy.csv")
    assert read_files([str(tmp_path / "copy.csv")], "csv", {"a": "k"}, "key", "train").to_dict() == first


CLASSES = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          "0": neg
          "1": pos
---
"""


@pytest.mark.parametrize(
    ("files", "text", "label"),
    [
        ({"train.csv": "text,label,more\n0007,1.10,1\n2020-01-01,NA,x\n"}, ["0007", "2020-01-01"], ["1.10", "NA"]),
        ({"train.tsv": "text\tlabel\n0007\t1.10\n"}, ["0007"], ["1.10"]),
        ({"data/train-0.jsonl": '{"text": "2020-01-01T00:00:00", "label": 3}\n'}, ["2020-01-01T00:00:00"], [3]),
        ({"train.json": '[{"text": "0007", "label": "01"}]'}, ["0007"], ["01"]),
        ({"train.csv": "text,label\n0007,pos\n1e5,\n", "README.md": CLASSES}, ["0007", "1e5"], [1, None]),
        ({"train.csv": "text,label\n0007,1\n1e5,0\n", "README.md": CLASSES}, ["0007", "1e5"], [1, 0]),
    ],
)
def test_text_in_a_folder_of_files_is_that_text(tmp_path, files, text, label):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    config = TaskConfig(type="classification", dataset=str(tmp_path), inputs=["text"], validation_split=None)
    assert load_splits("t", config, None)["train"].to_dict() == {"text": text, "label": label}


def test_settings_in_the_readme_of_a_folder_hold(tmp_path):
    (tmp_path / "train.csv").write_text("text;label\nx;y\n")
    (tmp_path / "README.md").write_text(
        '---\nconfigs:\n- config_name: default\n  sep: ";"\n  data_files: train.csv\n---\n'
    )
    config = TaskConfig(type="classification", dataset=str(tmp_path), inputs=["text"], validation_split=None)
    assert load_splits("t", config, None)["train"].to_dict() == {"text": ["x"], "label": ["y"]}


@pytest.mark.parametrize("pattern", ["part-?.csv", "part-*.csv", "**/part-*.csv"])
def test_a_pattern_stands_for_its_files_in_the_order_of_their_names(tmp_path, pattern):
    for number in (1, 0):
        (tmp_path / f"part-{number}.csv").write_text(f"text,label\ntext {number},{number}\n")
    files = {"train": str(tmp_path / pattern)}
    config = TaskConfig(type="classification", dataset="csv", inputs=["text"], data_files=files, validation_split=None)
    assert load_splits("t", config, None)["train"].to_dict() == {"text": ["text 0", "text 1"], "label": ["0", "1"]}
    config = dataclasses.replace(config, data_files={"train": str(tmp_path / "other-*.csv")})
    with pytest.raises(UserError, match=r"tasks.t.data_files.train: there is no file .*other-\*.csv"):
        load_splits("t", config, None)
