"""A server on this machine that answers every request with JSON, for stand-ins of services."""

import gzip
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, Mapping[str, str], bytes], tuple[int, Any]]  # (path, headers, body) -> (status, content)


class JsonServer:
    """Listens at `url` until `stop`; a body may come in chunks, or compressed."""

    def __init__(self, answer: Answer):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler) -> None:
                status, answered = answer(handler.path, handler.headers, handler.body())
                content = json.dumps(answered).encode()
                handler.send_response(status)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(content)))
                handler.end_headers()
                handler.wfile.write(content)

            do_POST = do_PUT = do_GET

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
