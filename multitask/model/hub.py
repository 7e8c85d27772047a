"""Exported models on the Hugging Face hub: one repository per task."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import UserError, first_line


def repository(name: str, task: str) -> str:
    """The repository of a task: `ORG/NAME-TASK`."""
    return f"{name}-{task}"


def check_hub(name: str, tasks: Iterable[str]) -> None:
    """Checks before a run what can be checked without a network: the names, and that there is a token.

    Raises:
        UserError: naming what is missing.
    """
    try:
        for task in tasks:
            validate_repo_id(repository(name, task))
    except HFValidationError as error:
        raise UserError(f"--push_to_hub: {first_line(error)}") from error
    if not get_token():
        raise UserError("--push_to_hub: there is no token; `hf auth login`, or set HF_TOKEN, with write access")


def push_to_hub(folder: Path, name: str, tasks: Iterable[str]) -> list[str]:
    """Uploads `folder/TASK` of each task, with its card, to `NAME-TASK`; a repository that does not exist is created.

    Returns:
        The addresses of the repositories.

    Raises:
        UserError: if the hub does not take one.
    """
    api, urls = HfApi(), []
    for task in tasks:
        try:
            url = api.create_repo(repository(name, task), exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder / task, commit_message=f"Export of task {task}")
        except Exception as error:  # the hub's, the network's or a file's: the models are on this disk in any case
            raise UserError(
                f"--push_to_hub: {repository(name, task)} was not uploaded: {first_line(error)}; the models are in "
                f"{folder}, and --mode export … --push_to_hub {name} tries again"
            ) from error
        urls.append(str(url))
    return urls
