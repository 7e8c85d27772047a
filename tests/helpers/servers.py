"""Servers on this machine that answer every request, for stand-ins of services."""

import gzip
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (path, headers, body) -> (status, content); of a plain server with headers in between, and bytes
Answer = Callable[[str, Mapping[str, str], bytes], tuple[int, Any]]
PlainAnswer = Callable[[str, Mapping[str, str], bytes], tuple[int, dict[str, str], bytes]]


class Server:
    """Listens at `url` until `stop`; a body may come in chunks, or compressed."""

    def __init__(self, answer: PlainAnswer):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler) -> None:
                status, headers, content = answer(handler.path, handler.headers, handler.body())
                handler.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    handler.send_header(name, value)
                handler.end_headers()
                if handler.command != "HEAD":
                    handler.wfile.write(content)

            do_POST = do_PUT = do_HEAD = do_GET

            def body(handler) -> bytes:
                if handler.headers.get("Transfer-Encoding") == "chunked":
                    chunks = []
                    while length := int(handler.rfile.readline(), 16):
                        chunks.append(handler.rfile.read(length))
                        handler.rfile.readline()
                    handler.rfile.readline()
                    content = b"".join(chunks)
                else:
                    content = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                return gzip.decompress(content) if handler.headers.get("Content-Encoding") == "gzip" else content

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class JsonServer(Server):
    """Answers with JSON."""

    def __init__(self, answer: Answer):
        def plain(path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            status, content = answer(path, headers, body)
            return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

        super().__init__(plain)
