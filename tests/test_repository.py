"""Promises of the repository itself."""

import re

from conftest import ROOT


def test_requirements_are_exact():
    lines = [
        line
        for name in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith(("#", "-r"))
    ]
    assert len(lines) >= 20 and all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_the_readme_names_only_what_exists():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)", readme))
    makefile = (ROOT / "Makefile").read_text()
    assert {"run-local", "test"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)] == []
    paths = set(
        re.findall(r"(?<![\w/])((?:accelerate_configs|cloud|configs|multitask|quickstart|tests)/[\w./-]*\w)", readme)
    )
    assert len(paths) >= 4 and [path for path in paths if not (ROOT / path).exists()] == []
