"""What holds before anything is imported, and what is said after the tests; the fixtures are in helpers/fixtures.py."""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory()  # every run of the tests starts with empty caches
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"  # also where there is a GPU; tests marked `gpu` are for that
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on several threads, also in the processes started here
# The real data are for the tests that ask for them; no other test may find a dataset there by chance. Under another name
# the processes of pytest-xdist inherit it.
REAL_DATA = os.environ.pop("MULTITASK_DATA_ROOT", "") or os.environ.get("TESTS_DATA_ROOT", "")
REAL_DATA = os.environ["TESTS_DATA_ROOT"] = REAL_DATA and os.path.abspath(REAL_DATA)


def pytest_sessionstart(session):
    """Reading the libraries takes seconds; the process that only hands tests to those of pytest-xdist needs none."""
    if not session.config.pluginmanager.has_plugin("dsession"):
        session.config.pluginmanager.import_plugin("helpers.fixtures")


def pytest_terminal_summary(terminalreporter):
    """Says how many tests on real data ran, so that none is missed in silence, and what drills have counted."""
    for passed in terminalreporter.stats.get("passed", []):
        for line in (value for name, value in passed.user_properties if name == "drill"):
            terminalreporter.write_line(f"drill: {line}")
    reports = [r for kind in ("passed", "failed", "skipped") for r in terminalreporter.stats.get(kind, [])]
    on_real_data = [
        r for r in reports if "real_data" in getattr(r, "keywords", ()) and (r.when == "call" or r.skipped)
    ]
    ran = sum(not r.skipped for r in on_real_data)
    terminalreporter.write_line(
        f"real data: {ran} of {len(on_real_data)} tests ran (MULTITASK_DATA_ROOT={REAL_DATA or 'not set'})"
    )
