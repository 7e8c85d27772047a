"""A small HTTP proxy between the client and a server, which does to requests what networks and servers do."""

import http.client
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

STATUSES = {"401": 401, "403": 403, "429": 429, "503": 503}
SENT = ("429", "503", "reset", "reset after half", "reset after all", "corrupt", "slow")  # to what is uploaded
FETCHED = ("429", "503", "reset", "truncate", "corrupt", "slow")  # to what is downloaded


class FaultProxy:
    """Passes requests on; `fault`, a function of a request's method and path, names what goes wrong with it, or None; a
    function that it gives is called before the request goes on.

    - 401, 403, 429, 503: this answer, and the server never hears of the request;
    - reset: the connection breaks before anything was read; after half: of the body; after all: the server did it,
      the client hears nothing;
    - corrupt: a byte of the content is another, in the direction in which the content goes;
    - truncate: the answer ends after half of its body, without a word;
    - slow: the answer trickles; stall: nothing comes for `stall_seconds`, and then a reset.
    """

    def __init__(self):
        self.target: tuple[str, int] = ("", 0)
        self.stall_seconds = 1.0
        self.lock = Lock()
        self.reset()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients that hang up are what this is about
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.fault: Callable[[str, str], str | Callable | None] = lambda method, path: None
        self.injected: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def handle_any(self):
        with self.proxy.lock:
            self.proxy.requests.append((self.command, self.path))
            fault = self.proxy.fault(self.command, self.path)
            if isinstance(fault, str):
                self.proxy.injected[fault] += 1
        if callable(fault):
            fault()
        size = int(self.headers.get("Content-Length") or 0)
        if fault in ("reset", "stall"):
            time.sleep(self.proxy.stall_seconds if fault == "stall" else 0)
            return self.break_off()
        if fault == "reset after half":
            self.rfile.read(size // 2)
            return self.break_off()
        body = self.rfile.read(size)
        if fault in STATUSES:
            return self.answer(STATUSES[fault], {"Content-Type": "application/json"}, b'{"error": {"message": "no"}}')
        is_download = self.command == "GET"
        if fault == "corrupt" and not is_download:
            body = _damage(body)
        connection = http.client.HTTPConnection(*self.proxy.target, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if fault == "reset after all":
            return self.break_off()
        if fault == "corrupt" and is_download:
            content = _damage(content)
        self.answer(response.status, dict(response.getheaders()), content, fault)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any

    def answer(self, status, headers, content, fault=None):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "slow":
            for start in range(0, len(content), len(content) // 5 + 1):
                time.sleep(0.01)
                self.wfile.write(content[start : start + len(content) // 5 + 1])
        elif fault == "truncate":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content)

    def break_off(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends a reset
        self.connection.close()
        self.close_connection = True
        self.rfile, self.wfile = _Nothing(), _Nothing()

    def log_message(self, *arguments):
        pass


class _Nothing:
    closed = True

    def flush(self):
        pass

    def close(self):
        pass


def _damage(body: bytes) -> bytes:
    if body.startswith(b"--"):  # a multipart upload: the content ends before the last boundary
        end = body.rfind(b"\r\n--")
        place = end - (1 if body[end - 4 : end] != b"\r\n\r\n" else len(body))
    else:
        place = len(body) // 2
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :] if 0 <= place < len(body) else body
