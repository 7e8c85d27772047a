"""Files of a hub data set are read as they stand, like those of a folder; also without a network afterwards."""

import gzip
import json
import os
import subprocess
import sys

import pytest
from helpers.dataset_hub import DatasetHub
from helpers.paths import ROOT

ROWS = [("0007", "1.10"), ("1e5", "1.1"), ("2020-01-02", "1.10"), ("null", "1.1")]
EXPECTED = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
READ = """
import json, sys
from multitask.config.schema import TaskConfig
from multitask.data.sources import load_splits
from multitask.errors import UserError
found = {}
for name, settings in json.loads(sys.argv[1]).items():
    try:
        splits = load_splits("t", TaskConfig(type="classification", dataset=f"org/{name}", inputs=["text"], **settings), None)
        found[name] = {split: {c: rows[c] for c in ("text", "label")} for split, rows in splits.items()}
    except UserError as error:
        found[name] = str(error)
print(json.dumps(found, default=list))
"""
DECLARED = """---
dataset_info:
  features:
  - {name: text, dtype: string}
  - name: label
    dtype:
      class_label:
        names: {'0': '1.1', '1': '1.10'}
---
"""
SEPARATOR = """---
configs:
- config_name: default
  data_files: [{split: train, path: rows.csv}]
  sep: ";"
---
"""
SUBSETS = """---
configs:
- config_name: one
  data_files: [{split: train, path: a.csv}]
- config_name: two
  data_files: [{split: train, path: b.csv}]
---
"""


def csv(separator=","):
    return "".join(f"{separator.join(row)}\n" for row in [("text", "label"), *ROWS]).encode()


def lines():
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS).encode()


DATASETS = {
    "csv": {"train.csv": csv(), "validation.csv": csv()},
    "tsv": {"train.tsv": csv("\t")},
    "json": {"train.jsonl": lines()},
    "packed": {"train.csv.gz": gzip.compress(csv())},
    "declared": {"README.md": DECLARED.encode(), "train.csv": csv()},
    "separator": {"README.md": SEPARATOR.encode(), "rows.csv": csv(";")},
    "subsets": {"README.md": SUBSETS.encode(), "a.csv": b"text,label\nno,no\n", "b.csv": csv()},
    "chosen": {"a.csv": b"text,label\nno,no\n", "b.csv": csv()},
    "lacking": {"train.csv": b"txt,label\n0007,1.10\n"},
}
SETTINGS = {"subsets": {"subset": "two"}, "chosen": {"data_files": {"train": "b.csv"}}}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What is read with the hub, and afterwards without it."""
    hub = DatasetHub({f"org/{name}": files for name, files in DATASETS.items()})
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_DATASETS_OFFLINE"):
        environment.pop(name, None)
    asked = json.dumps({name: SETTINGS.get(name, {}) for name in DATASETS})

    def read():
        command = [sys.executable, "-c", READ, asked]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    try:
        with_hub = read()
    finally:
        hub.stop()
    return {"with the hub": with_hub, "without": read()}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["with the hub", "without"])
@pytest.mark.parametrize("name", [name for name in DATASETS if name != "lacking"])
def test_texts_are_those_in_the_file(found, name, when):
    rows = found[when][name]
    expected = EXPECTED | {"label": [1, 0, 1, 0]} if name == "declared" else EXPECTED
    assert rows == dict.fromkeys(("train", "validation") if name == "csv" else ("train",), expected)


@pytest.mark.slow
def test_a_missing_column_is_named(found):
    assert found["with the hub"]["lacking"] == (
        "tasks.t.inputs: train has no column 'text'; did you mean 'txt'? (columns: label, txt)"
    )
