"""A web server in a thread that answers as badly as a test asks for."""

from __future__ import annotations

import http.server
import re
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class FileServer:
    """Answers the first request with the first answer, and so on; the last answer serves all further requests."""

    def __init__(self, *answers: Answer, certificate: Path | None = None) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopping = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                answer(self)
                self.close_connection = True

            def do_CONNECT(self) -> None:
                outer.requests.append((f"CONNECT {self.path}", {}))
                outer.answers[0](self)
                self.close_connection = True

            def log_message(self, *values: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                # clients of these tests hang up in the middle; that is what is tested
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.stopping = self.stopping
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.base = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def url(self, path: str = "/model.pt") -> str:
        return self.base + path

    def header(self, name: str) -> list[str | None]:
        """One header of each request so far."""
        return [headers.get(name) for _, headers in self.requests]

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def file(content: bytes, *, etag: str = "", modified: str = "", ranges: bool = True, **more: str) -> Answer:
    """The file, or the part of it that is asked for, as a good server gives it."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        headers = {"Content-Type": "application/octet-stream", **more}
        if etag:
            headers["ETag"] = etag
        if modified:
            headers["Last-Modified"] = modified
        span = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        same = handler.headers.get("If-Range") in (None, etag or modified)
        if ranges and span and same:
            start = int(span[1])
            if start >= len(content):
                send(handler, 416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            send(handler, 206, headers, content[start:])
        else:
            send(handler, 200, headers, content)

    return answer


def breaking_off(content: bytes, after: int, *, etag: str = "") -> Answer:
    """The beginning of the file, then silence and a closed connection."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(content))}
        send(handler, 200, {**headers, "ETag": etag} if etag else headers, content[:after])

    return answer


def with_length(content: bytes, length: int | None) -> Answer:
    """The file with a wrong length, or with none."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, {"Content-Length": None if length is None else str(length)}, content)

    return answer


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """An answer with this status; underscores in the headers' names become hyphens."""
    return lambda handler: send(handler, code, {name.replace("_", "-"): text for name, text in headers.items()}, body)


def hanging(handler: http.server.BaseHTTPRequestHandler) -> None:
    """No answer at all until the server is stopped."""
    handler.server.stopping.wait(30)


def hanging_after(content: bytes, after: int, etag: str) -> Answer:
    """The beginning of the file, then an open and silent connection."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, {"Content-Length": str(len(content)), "ETag": etag}, content[:after])
        handler.wfile.flush()
        handler.server.stopping.wait(30)

    return answer


def send(handler: http.server.BaseHTTPRequestHandler, code: int, headers: dict[str, str | None], body: bytes) -> None:
    handler.send_response(code)
    for name, text in {"Content-Length": str(len(body)), **headers}.items():
        if text is not None:
            handler.send_header(name, text)
    handler.end_headers()
    handler.wfile.write(body)
