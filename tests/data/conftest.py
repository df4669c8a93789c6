"""Fixtures of the data tests: the folder of real sets, and a web server on loopback that can misbehave."""

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def data_folder() -> Path:
    """Return the folder of real data sets; tests that need one are skipped where there is none."""
    value = os.environ.get("WORKINGPAPERS_DATA")
    if not value:
        pytest.skip("WORKINGPAPERS_DATA is unset and no shared/data stands beside the repository")
    return Path(value)


Behaviour = Callable[["Handler", bytes], None]


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes); `script` holds how to answer the next requests, then all goes well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[Behaviour] = []
        self.log: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.log.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path)
        behaviour = self.server.script.pop(0) if self.server.script else well
        if content is None:
            self.send_error(404)
        else:
            behaviour(self, content)

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def range(self, content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers for the Range asked for."""
        asked = self.headers.get("Range")
        if asked is None:
            return 200, content, {}
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            return 416, b"", {"Content_Range": f"bytes */{len(content)}"}
        extent = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, content[start:], {"Content_Range": extent}


def well(handler: Handler, content: bytes) -> None:
    status, body, headers = handler.range(content)
    handler.answer(status, body, **headers)


def cut(handler: Handler, content: bytes) -> None:
    """Promise everything, send half of it, hang up."""
    status, body, headers = handler.range(content)
    handler.answer(status, body[: len(body) // 2], length=len(body), **headers)
    handler.close_connection = True


def without_range(handler: Handler, content: bytes) -> None:
    handler.answer(200, content)


def another_range(handler: Handler, content: bytes) -> None:
    handler.answer(206, content[1:], Content_Range=f"bytes 1-{len(content) - 1}/{len(content)}")


def status(code: int) -> Behaviour:
    return lambda handler, content: handler.answer(code, b"no")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a server for one test, with no waiting between attempts."""
    from workingpapers.data import download

    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def behave() -> dict[str, Any]:
    """Return the misbehaviours by name."""
    return {"cut": cut, "without_range": without_range, "another_range": another_range, "status": status}
