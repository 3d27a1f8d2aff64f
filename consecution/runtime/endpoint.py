"""A small HTTP server for those who watch a run: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for probes.

It answers whoever reaches its address, from a thread of its own; nothing that it is asked changes anything.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from consecution.errors import MissingExtraError
from consecution.report import Status
from consecution.runtime.metrics import exposition
from consecution.sources.listening import listen_tcp

CLIENT_LIMIT_S = 5.0
"""So long may a client be silent."""
MOST_CLIENTS = 32
TEXT = "text/plain; charset=utf-8"
Answer = tuple[int, str, bytes]
"""Status code, content type and content."""


class Watched(Protocol):
    """A run as it is watched. All of it may be called by any thread, and returns at once."""

    def status(self) -> Status: ...

    def why_not_ready(self) -> str:
        """ "": all workers are up, and nothing has asked for a stop."""

    def why_not_live(self) -> str:
        """ "": all is well with the supervisor itself."""


class Endpoint:
    """Listens at once, and serves until `close`. WorldError where the address cannot be had; ``port`` 0 finds one."""

    def __init__(self, run: Watched, host: str, port: int) -> None:
        self._listener = listen_tcp("metrics_port", host, port)
        self.port: int = self._listener.getsockname()[1]
        self._server = _Server(self._listener, _answers(run))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(CLIENT_LIMIT_S,), name="consecution-endpoint", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread up
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _answers(run: Watched) -> dict[str, Callable[[str], Answer]]:
    """Path → what is answered to a client that accepts these formats."""

    def metrics(accepted: str) -> Answer:
        try:
            return 200, *exposition(run.status(), accepted)
        except MissingExtraError as error:
            return 501, TEXT, f"{error}\n".encode()

    return {
        "/metrics": metrics,
        "/livez": lambda accepted: _verdict(run.why_not_live()),
        "/readyz": lambda accepted: _verdict(run.why_not_ready()),
    }


def _verdict(why_not: str) -> Answer:
    return 503 if why_not else 200, TEXT, f"{why_not or 'ok'}\n".encode()


class _Server(ThreadingHTTPServer):
    """A thread for each client, and not more than so many of them."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, answers: dict[str, Callable[[str], Answer]]) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.answers = answers
        self._room = threading.BoundedSemaphore(MOST_CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away while it is answered is nobody's concern."""


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_LIMIT_S
    server: _Server
    server_version, sys_version = "consecution", ""

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path.partition("?")[0])
        if answer is None:
            known = ", ".join(self.server.answers)
            code, content_type, content = 404, TEXT, f"{self.path!r} is not here; there are {known}\n".encode()
        else:
            code, content_type, content = answer(self.headers.get("Accept", ""))
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """The log is for what the run has to say."""


__all__ = ["Endpoint"]
