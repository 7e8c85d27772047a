import json
import re
import shutil
import subprocess
import urllib.parse
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.tasks import TASKS
from markupsafe import Markup

from multitask.tracking import charts
from multitask.tracking.report import agreement, page, read_curves

pytestmark = pytest.mark.pictures
NASTY = "<script>alert('x')</script> & \"$x_1$\""


def write_run(folder, *, task_names=tuple(TASKS), steps=range(1, 41), with_agreement=False):
    """The files of a run whose tasks are classifications, with texts that would break a careless page."""
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in steps:
            values = {"train/loss": 1 / step, "train/grad_norm": None if step == 3 else 1.0 + step % 3}
            values |= {f"train/{name}/loss": 2 / step for name in task_names}
            values |= {f"train/{name}/examples": step * 4 for name in task_names}
            values |= {"train/learning_rate": 1e-4, "train/tokens_per_second": 900.0, "train/padding_share": 0.1}
            file.write(json.dumps({"step": step} | values) + "\n")
            if step % 10 == 0:
                results = {f"eval/{name}/accuracy": step / 100 for name in task_names} | {"eval/average": step / 100}
                file.write(json.dumps({"step": step} | results) + "\n")
                if with_agreement:
                    file.write(json.dumps({"step": step} | AGREEMENT) + "\n")
    row = {"row": 3, "text": NASTY, "label": "no", "predicted": NASTY, "confidence": 0.99}
    picture = {"kind": "confusion", "labels": [NASTY, "no"], "counts": [[5, 1], [0, 7]], "others": 0}
    seen = {"type": "classification", "picture": picture, "mistakes": [row], "watched": [row]}
    (folder / "predictions.json").write_text(json.dumps({"step": 40, "tasks": dict.fromkeys(task_names, seen)}))
    return folder


PAIRS = ("similar/animal", "similar/choice", "animal/choice")
AGREEMENT = {
    f"agreement/{part}{pair}": 0.1 - 0.2 * n
    for part in ("", "layer_0/", "layer_1/", "embeddings/")
    for n, pair in enumerate(PAIRS)
}


def page_of(folder, **environment):
    return page(folder, {"tasks": {"a": 1}}, dict.fromkeys(TASKS, 1 / 3), {"device": "CPU"} | environment)


class Parsed(HTMLParser):
    """The elements of a page, with their attributes and the text in them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_asks_nobody_for_anything(tmp_path):
    html = page_of(write_run(tmp_path / "run", with_agreement=True), note=NASTY)
    parsed = Parsed(html)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("svg") == 7 + 2 * 3 + 3  # the overview without checkpoints, two a task, agreement
    assert not {"script", "iframe", "img", "image", "object", "embed", "base", "form"} & set(tags)
    references = [
        value
        for _, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data")
    ]
    assert len(references) > 20 and all(value.startswith("#") or value == "data:," for value in references)
    urls = re.findall(r"url\(([^)]*)\)", html)
    assert all(url.startswith("#") for url in urls) and "@import" not in html
    assert parsed.text.count(NASTY) == (2 * 2) * 3 + 1  # as it is written: two columns of two tables a task, and below
    assert "<script" not in html and "nan" not in html.lower().split()


def test_titles_are_plain_and_no_column_is_empty(tmp_path):
    folder = write_run(tmp_path / "run")

    def titles():
        return re.findall("<th[^>]*>([a-z]+)</th>", page_of(folder))[5:]

    columns = ["row", "text", "label", "predicted"]
    assert titles() == [*columns, "confidence"] * 2 * len(TASKS)
    seen = json.loads((folder / "predictions.json").read_text())
    for of_task in seen["tasks"].values():
        for row in of_task["mistakes"]:
            row.pop("confidence", None)
    (folder / "predictions.json").write_text(json.dumps(seen))
    assert titles() == [*columns, *columns, "confidence"] * len(TASKS)


def test_one_evaluation_is_no_curve(tmp_path):
    folder = write_run(tmp_path / "run", steps=range(1, 11))
    html = page_of(folder)
    assert "0.1000" in html and "<figcaption>Validation</figcaption>" not in html
    assert "<figcaption>Training loss</figcaption>" in html


def test_axes_start_where_the_data_start():
    svg = charts.lines("late", {"a": ([5003, 6011], [1.0, 2.0])})  # no tick stands there
    ((start, end),) = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*' + charts.PALETTE[0], svg)
    vertical = {x for x, again in re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"', svg) if x == again}
    assert start in vertical and float(end) > float(start)  # the left edge of the axes


def test_the_page_of_a_run_that_has_just_begun(tmp_path):
    html = page_of(tmp_path)
    assert "No evaluation yet." in html and "<svg" not in html


def test_the_same_files_give_the_same_page(tmp_path):
    folder = write_run(tmp_path / "run")
    pages = {re.sub("written [^<]*", "", page_of(folder)) for _ in range(2)}
    assert len(pages) == 1


def test_agreement_is_shown_only_where_it_was_measured(tmp_path):
    assert "Agreement" not in page_of(write_run(tmp_path / "without"))
    curves = read_curves(write_run(tmp_path / "with", with_agreement=True) / "metrics.jsonl")
    shown = agreement(curves)
    assert [caption for caption, _ in shown] == ["Last", "Over the steps", "By layer"]
    assert shown[0][1].count("-0.30") + shown[0][1].count("−0.30") == 2  # the matrix is symmetric
    assert all(part in shown[2][1] for part in ("embeddings", "layer_0", "layer_1"))


def test_a_later_number_for_a_step_takes_the_place_of_an_earlier_one(tmp_path):
    (tmp_path / "m").write_text('{"step": 2, "a": 1.0}\n{"step": 1, "a": 0.5, "b": null}\n{"step": 2, "a": 3.0}\n')
    assert read_curves(tmp_path / "m") == {"a": ([1, 2], [0.5, 3.0])}


def test_a_long_curve_is_thinned_over_all_its_length():
    steps, values = charts.thinned(range(100_001), np.arange(100_001) * 2.0)
    assert len(steps) == charts.MOST_POINTS and steps[0] < 200 and steps[-1] > 99_800
    assert np.allclose(np.asarray(steps) * 2, values)


def test_charts_take_their_colours_from_the_page_and_their_names_as_they_are():
    svg = charts.lines("a <b>", {"_x $1_2$": ([1, 2], [1.0, 2.0]), "<b>": ([1, 2], [0.0, 1.0])})
    assert isinstance(svg, Markup) and svg.startswith("<svg") and 'aria-label="a &lt;b&gt;"' in svg
    assert "currentColor" in svg and "var(--line)" in svg and charts.INK not in svg and charts.FAINT not in svg
    assert "x $1_2$" in svg and "&lt;b&gt;" in svg and "<b>" not in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")


@pytest.fixture(scope="session")
def chromium():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("there is no chromium: the report is not looked at in a browser")
    return [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


CHROMIUMS_OWN = ("google.com", "googleapis.com", "gvt1.com")


@pytest.fixture
def look(chromium, tmp_path):
    """Opens a page as a phone would: what its console says, and what it asks the network for."""

    def look(path):
        log = tmp_path / "requests.json"
        options = [f"--user-data-dir={tmp_path / 'user'}", f"--log-net-log={log}", "--enable-logging=stderr"]
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
        options += [*quiet, "--window-size=390,800", "--dump-dom", path.as_uri()]
        run = subprocess.run([*chromium, *options], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        said = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
        events = json.loads(log.read_text())["events"]
        asked = {url for event in events if "://" in (url := str(event.get("params", {}).get("url", "")))}
        hosts = {url: urllib.parse.urlsplit(url).hostname or "" for url in asked}
        return run.stdout, said, {url for url, host in hosts.items() if not host.endswith(CHROMIUMS_OWN)}

    return look


def test_a_browser_shows_the_page_without_complaint_or_request(tmp_path, look):
    path = write_run(tmp_path / "run", with_agreement=True) / "index.html"
    path.write_text(page_of(path.parent))
    shown, said, asked = look(path)
    assert "Agreement of the tasks" in shown and (said, asked) == ([], set())
    path.write_text("<script>console.error('oh')</script><img src='http://127.0.0.1:9/picture.png'>")
    _, said, asked = look(path)  # the eyes are open
    assert len(said) == 1 and asked == {"http://127.0.0.1:9/picture.png"}


# -- the whole program -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_leaves_a_report_that_is_the_same_after_a_resume(train, mixture_config, tmp_path):
    mixture_config["training"] |= {"eval_steps": 3, "save_steps": 3, "save_total_limit": None}
    folder = train()
    path = folder / "report" / "index.html"
    page_at_the_end = path.read_text()
    parsed = Parsed(page_at_the_end)
    assert all(f'id="task-{name}"' in page_at_the_end for name in TASKS) and "Step 6" in parsed.text
    assert [tag for tag, _ in parsed.elements].count("svg") == 9 + 2 * 3
    assert "Largest errors (step 6)" in parsed.text and "max_tokens_per_pass" in parsed.text
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    (folder / "predictions.json").write_text("{}")  # of later than the checkpoint; it is set back
    train()
    again = Parsed(path.read_text())
    assert again.text.splitlines()[-40:] == parsed.text.splitlines()[-40:]
    for section in ("task-similar", "task-animal", "task-choice"):
        assert section_of(path.read_text(), section) == section_of(page_at_the_end, section)


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_first_evaluation_has_a_report(stoppable, tmp_path):
    assert stoppable("run", "--training.max_steps", "20", stop_at=3) == 143
    page_of_run = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "No evaluation yet." in page_of_run and "Training loss" in page_of_run


def section_of(html, name):
    return html.split(f'<section id="{name}">')[1].split("</section>")[0]


@pytest.mark.slow
def test_a_report_that_cannot_be_written_stops_nothing(train, tmp_path, capsys, mixture_config):
    mixture_config["training"]["eval_steps"] = 3
    (tmp_path / "run").mkdir()
    folder = train()
    shutil.rmtree(folder / "report")
    shutil.rmtree(folder / "checkpoints")
    (folder / "report").write_text("a file where the folder should be")
    capsys.readouterr()
    train()
    printed = capsys.readouterr().out
    assert printed.count(f"note: {folder / 'report' / 'index.html'} cannot be written: [Errno 17] File exists") == 1
    assert (folder / "metrics.json").exists() and (folder / "export" / "animal").is_dir()
