"""As much of the Hugging Face hub's API as an upload needs: it creates repositories and takes their files."""

import base64
import json
import re
from collections.abc import Mapping

from .servers import JsonServer


class HubServer:
    """Listens at `url`; `files[repository]` are what was committed, `refuses` a repository that it does not take."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuses = ""

        self.server = JsonServer(self.answer)
        self.url = self.server.url

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict]:
        is_known = headers.get("Authorization") == "Bearer hf_token"
        return self.take(path, body) if is_known else (401, {"error": "no token"})

    def take(self, path: str, body: bytes) -> tuple[int, dict]:
        """The status of a request and the answer."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name == self.refuses:
                return 403, {"error": "You don't have the rights to create a model under this namespace"}
            self.files.setdefault(name, {})
            return 200, {"url": f"{self.url}/{name}", "id": name}
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main(\?.*)?", path):
            files = json.loads(body)["files"]
            return 200, {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files
                ]
            }
        if found := re.fullmatch(r"/api/models/(.+)/commit/main(\?.*)?", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[found[1]][line["value"]["path"]] = content
            return 200, {"commitUrl": f"{self.url}/{found[1]}/commit/1", "commitOid": "1", "success": True}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/api/models/([^?]+?)(/revision/main)?(\?.*)?", path):
            is_there = found[1] in self.files
            return (200, {"id": found[1], "sha": "1", "siblings": []}) if is_there else (404, {"error": "not found"})
        return 404, {"error": path}
