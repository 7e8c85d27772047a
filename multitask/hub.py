"""Where an encoder or a dataset is looked for: an installed package, a folder, a mirror of the hub, the hub."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import datasets.config
from huggingface_hub import constants

from .errors import UserError


def find_encoder(encoder: str, model_root: str | None = None) -> str:
    """The folder or the hub id under which `transformers` finds an encoder.

    Args:
        encoder: hub id, local folder, or `package://NAME/FOLDER` inside an installed package.
        model_root: folder that mirrors hub models; an encoder found there is taken from there.

    Raises:
        UserError: for a package or folder that is not there.
    """
    if encoder.startswith("package://"):
        package, _, folder = encoder.removeprefix("package://").partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"model.encoder: the Python package '{package}' of {encoder} is not installed")
        path = Path(spec.submodule_search_locations[0]) / folder
        if not path.is_dir():
            raise UserError(f"model.encoder: the Python package '{package}' has no folder '{folder}'")
        return str(path)
    if (mirrored := find_in_mirror(encoder, model_root, "model_root")) is not None:
        return mirrored
    if Path(encoder).is_dir():
        return encoder
    if encoder.startswith((".", "/", "~")) or encoder.count("/") > 1:
        raise UserError(f"model.encoder: there is no folder {encoder} (seen from {Path.cwd()})")
    go_offline_if_unreachable()
    return encoder


def find_in_mirror(name: str, root: str | None, option: str) -> str | None:
    """The folder of `name` in a folder that mirrors the hub, if it is there.

    Raises:
        UserError: if `root` is given and no folder; `option` says which setting that was.
    """
    if root and not Path(root).is_dir():
        raise UserError(f"{option}: there is no folder {root} (seen from {Path.cwd()})")
    folder = Path(root) / name if root else None
    return str(folder) if folder is not None and folder.is_dir() else None


@cache
def go_offline_if_unreachable() -> None:
    """Asks the hub once; if there is no answer, lets the Hugging Face libraries use what they have in their caches.

    Otherwise each of their requests for a file is retried for half a minute.
    """
    if constants.is_offline_mode():
        return
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=5)
    except HTTPError:
        return  # an answer all the same
    except OSError:
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
