"""As much of the Hugging Face hub's API as reading a data set needs."""

import hashlib
import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, unquote, urlparse

from .servers import Server

COMMIT = "1" * 40


class DatasetHub(Server):
    """`files[repository]` are the files by path."""

    def __init__(self, files: dict[str, dict[str, bytes]]):
        self.files = files
        super().__init__(self.answer)

    def answer(self, path: str, _: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and content for a request."""
        place = unquote(urlparse(path).path)
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", place):
            content = self.files.get(found[1], {}).get(found[2])
            if content is None:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
            etag = hashlib.sha1(content).hexdigest()
            return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, content
        if not (found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/.*)?", place)) or found[1] not in self.files:
            is_root = place == "/"
            return (200, {}, b"") if is_root else (404, {"X-Error-Code": "RepoNotFound"}, b"{}")
        files, rest = self.files[found[1]], found[2] or ""
        entries = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files.items()]
        if rest.startswith("/paths-info"):
            try:
                wanted = json.loads(body)["paths"]
            except ValueError:
                wanted = parse_qs(body.decode())["paths"]
            return self.json([entry for entry in entries if entry["path"] in wanted])
        if rest.startswith("/tree"):
            return self.json(entries)
        siblings = [{"rfilename": p} for p in files]
        return self.json({"id": found[1], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def json(self, value: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
