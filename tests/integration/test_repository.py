"""Promises of the repository itself: what its pages name exists."""

import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import yaml
from helpers.paths import ROOT

from multitask.cli.arguments import FLAGS_OF_MODES
from multitask.config.schema import Config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Options of other programs that the pages show: accelerate, torchrun, docker, gcloud, the benchmarks.
OF_OTHERS = {
    "config_file",
    "mixed_precision",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "quiet",
    "nproc_per_node",
    "use-pep517",
    "repository-format",
    "location",
    "role",
    "member",
    "data-file",
    "only",
    "rounds",
    "epochs",
}


def text_of_pages() -> str:
    assert len(PAGES) >= 8
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def config_keys(kind: type, prefix: str = "") -> set[str]:
    """Dotted names of all keys; NAME stands for a task's."""
    keys: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        keys.add(f"{prefix}{name}")
        for inner in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(inner):
                keys |= config_keys(inner, f"{prefix}{name}{'.NAME' if get_args(hint)[:1] == (str,) else ''}.")
    return keys


def test_requirements_are_exact():
    lines = [
        line
        for name in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith(("#", "-r"))
    ]
    assert len(lines) >= 20 and all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_make_targets_that_the_pages_name_exist():
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)", text_of_pages()))
    makefile = (ROOT / "Makefile").read_text()
    prose = {"as"}  # "updates together as it make as", in the text of the benchmarks
    assert {"run-local", "test", "bench", "cloud-train"} <= targets and len(targets) >= 12
    assert [t for t in sorted(targets - prose) if not re.search(rf"^{t}:", makefile, re.M)] == []


def test_options_that_the_pages_name_exist():
    keys = config_keys(Config)
    flags = {flag.removeprefix("--") for flag in FLAGS_OF_MODES} | {"config", "mode", "debug", "help", "tasks.help"}
    named = set(re.findall(r"(?<![\w-])--([a-z][\w.-]*\w)", text_of_pages()))
    own = {re.sub(r"^tasks\.(?!help)[a-z_]+\.", "tasks.NAME.", option) for option in named - OF_OTHERS}
    assert len(own) >= 15
    assert sorted(own - keys - flags) == []


def test_keys_that_the_pages_name_exist():
    keys = config_keys(Config)
    sections = "training|mixture|model|adapters|checkpoints|tracking"
    named = set(re.findall(rf"`((?:{sections})\.[a-z_]+|tasks\.\w+\.[a-z_]+)", text_of_pages()))
    assert len(named) >= 7
    named = {re.sub(r"^tasks\.\w+\.", "tasks.NAME.", key) for key in named}
    assert sorted(named - keys) == []


def test_configurations_that_the_pages_show_have_these_keys():
    """Users copy them."""
    keys, shown = config_keys(Config), set()
    for block in re.findall(r"```yaml\n(.*?)```", text_of_pages(), re.S):
        for section, content in yaml.safe_load(block).items():
            for key, value in content.items():
                inner = value if section == "tasks" else {}
                # `labels` stands for tasks of their own, which take the keys of the rows.
                for of_label in inner.get("labels", {}).values():
                    shown |= {f"tasks.NAME.{name}" for name in of_label}
                inner = {name: of for name, of in inner.items() if name != "labels"}
                shown |= {f"tasks.NAME.{name}" for name in inner} if inner else {f"{section}.{key}"}
    assert len(shown) >= 12
    assert sorted(shown - keys) == []


def test_paths_that_the_pages_name_exist():
    folders = "accelerate_configs|benchmarks|cloud|configs|dashboards|docs|multitask|quickstart|tests"
    paths = set(re.findall(rf"(?<![\w/.])((?:{folders})/[\w./-]*\w)", text_of_pages()))
    assert len(paths) >= 15
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_links_between_the_pages_lead_somewhere():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", page.read_text())]
    assert len(links) >= 10
    assert [link for page, link in links if not (page.parent / link).exists()] == []


def test_the_readme_names_every_room():
    rooms = {path.parent.name for path in Path(ROOT / "multitask").glob("*/__init__.py")}
    readme = (ROOT / "README.md").read_text()
    assert len(rooms) == 11
    assert [room for room in sorted(rooms) if f"  {room}/ " not in readme] == []
