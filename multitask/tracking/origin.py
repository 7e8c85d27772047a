"""Provenance of a run: its command, the git commit, the host."""

import platform
import subprocess
from pathlib import Path


def describe_origin(command: str) -> dict[str, str]:
    """The command line, the git commit (marked if files were changed) and the host.

    Args:
        command: the command line of the run.
    """
    return {"command": command, "commit": git_commit(Path(__file__).parent), "host": platform.node()}


def git_commit(folder: Path) -> str:
    """The commit of the git checkout that contains a folder, or a note that there is none."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return "unknown: not in a git checkout"


def duration(seconds: float) -> str:
    """Formats seconds as 1 h 5 min, 3 min 20 s or 12 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
