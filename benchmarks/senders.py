"""Those who send to sources that listen: ``python -m benchmarks.senders KIND ADDRESS FILE FOLDER``.

KIND is tcp, zmq or http. Each line of FILE is a row. A sender waits until somebody listens, stamps that moment in
FOLDER, and sends as fast as it is let.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import itertools
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.stamps import stamp_first

ROWS_PER_REQUEST = 1000
CLIENTS = 4
LISTENS_WITHIN_S = 60.0


def send_lines(address: str, file: Path, folder: Path) -> None:
    """All lines over a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client, open(file, "rb") as lines:
        _patiently(lambda: client.connect(address))
        stamp_first(folder)
        client.sendfile(lines)


def send_messages(address: str, file: Path, folder: Path) -> None:
    """A message for each line."""
    import zmq

    lines = file.read_bytes().splitlines()
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.IMMEDIATE, 1)  # Nothing is queued before somebody listens.
        socket.connect(address)
        socket.poll(int(LISTENS_WITHIN_S * 1000), zmq.POLLOUT)
        stamp_first(folder)
        for line in lines:
            socket.send(line)


def send_requests(address: str, file: Path, folder: Path) -> None:
    """A thousand lines in each request, of four clients at a time."""
    host, port = address.split(":")
    lines = iter(file.read_bytes().splitlines(keepends=True))
    bodies = iter([b"".join(some) for some in iter(lambda: list(itertools.islice(lines, ROWS_PER_REQUEST)), [])])

    def post(_: int) -> None:
        client = http.client.HTTPConnection(host, int(port))
        for body in bodies:
            client.request("POST", "/", body, {"content-type": "application/x-ndjson"})
            answer = client.getresponse()
            answer.read()
            assert answer.status in (200, 202), answer.status
        client.close()

    _patiently(lambda: socket.create_connection((host, int(port))).close())
    stamp_first(folder)
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(post, range(CLIENTS)))


def _patiently(connect: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LISTENS_WITHIN_S
    while True:
        try:
            connect()
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.005)


SENDERS = {"tcp": send_lines, "zmq": send_messages, "http": send_requests}


if __name__ == "__main__":
    kind, address, file, folder = sys.argv[1:5]
    SENDERS[kind](address, Path(file), Path(folder))
