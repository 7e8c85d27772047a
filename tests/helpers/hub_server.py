"""As much of the Hugging Face hub's API as an upload needs: it creates repositories and takes their files."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer:
    """Listens at `url`; `files[repository]` are what was committed, `refuses` a repository that it does not take."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuses = ""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler) -> None:
                body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                authorised = handler.headers.get("Authorization") == "Bearer hf_token"
                status, answer = self.take(handler.path, body) if authorised else (401, {"error": "no token"})
                content = json.dumps(answer).encode()
                handler.send_response(status)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(content)))
                handler.end_headers()
                handler.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

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
