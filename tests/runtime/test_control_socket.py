"""The control socket: whoever asks is answered, and nobody can hold it up."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution.errors import NotRunningError, WorldError
from consecution.runtime.control_socket import (
    CLIENT_LIMIT_S,
    LONGEST_REQUEST_BYTES,
    MOST_CLIENTS,
    ControlServer,
    ask,
)

LONGEST_WAIT_S = 30.0


class Served:
    """A server in a thread; its clock moves only when a test moves it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.now_s = 0.0
        self.asked: list[dict[str, Any]] = []
        self.server = ControlServer(path, self._answer, clock=lambda: self.now_s)
        self._over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        if request.get("command") == "raise":
            raise ValueError("no such thing")
        return {"echo": request, "filling": "x" * request.get("size", 0)}

    def _serve(self) -> None:
        while not self._over:
            self.server.turn(0.01)

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(LONGEST_WAIT_S)
        made.connect(self.path)
        return made

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self.server.close()


@pytest.fixture
def path() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="t-", dir="/tmp")
    yield os.path.join(folder, "control.sock")
    shutil.rmtree(folder)


@pytest.fixture
def served(path: str) -> Iterator[Served]:
    made = Served(path)
    yield made
    made.close()


def read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    client.close()
    return b"".join(parts)


def test_a_request_is_answered(served: Served) -> None:
    assert ask(served.path, {"command": "status", "size": 3}) == {
        "ok": True,
        "echo": {"command": "status", "size": 3},
        "filling": "xxx",
    }


def test_an_answer_larger_than_the_systems_buffer_arrives(served: Served) -> None:
    assert len(ask(served.path, {"size": 5_000_000})["filling"]) == 5_000_000


def test_what_the_run_says_no_to_is_told(served: Served) -> None:
    with pytest.raises(WorldError, match="the run refuses 'raise': no such thing"):
        ask(served.path, {"command": "raise"})


def test_only_its_owner_can_connect(served: Served) -> None:
    assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600


def junk(seed: int) -> bytes:
    made = random.Random(seed)
    kinds = [
        made.randbytes(made.randrange(1, 3000)) + b"\n",
        b"[" * 100_000 + b"\n",
        json.dumps(made.choice([None, 7, [], "x", {}, {"command": {"a": []}}])).encode() + b"\n",
        b"\x80\x04cos\nsystem\n(S'false'\ntR.\n",
        b"x" * (LONGEST_REQUEST_BYTES + 10_000),
        b"GET / HTTP/1.1\r\n\r\n",
    ]
    return made.choice(kinds)


def test_junk_gets_an_error_and_the_next_client_its_answer(served: Served) -> None:
    for seed in range(60):
        client = served.connect()
        try:
            client.sendall(junk(seed))
            client.shutdown(socket.SHUT_WR)
            answer = read_all(client)
        except OSError:  # it was left before it had sent everything
            client.close()
            continue
        assert json.loads(answer)["ok"] in (True, False), seed

    assert ask(served.path, {"command": "status"})["ok"]


def test_a_client_that_says_nothing_is_left_and_nobody_waits_for_it(served: Served) -> None:
    silent = served.connect()
    half = served.connect()
    half.sendall(b'{"command": "sta')

    assert ask(served.path, {"command": "status"})["ok"]

    served.now_s += CLIENT_LIMIT_S + 1
    assert (read_all(silent), read_all(half)) == (b"", b"")


def test_a_client_that_does_not_take_its_answer_holds_up_nobody(served: Served) -> None:
    greedy = served.connect()
    greedy.sendall(b'{"size": 8000000}\n')

    assert ask(served.path, {"command": "status"})["ok"]

    served.now_s += CLIENT_LIMIT_S + 1
    assert len(read_all(greedy)) < 8_000_000


def test_clients_beyond_the_limit_are_served_once_the_others_are_gone(served: Served) -> None:
    silent = [served.connect() for _ in range(MOST_CLIENTS)]
    late: list[Any] = []
    asking = threading.Thread(target=lambda: late.append(ask(served.path, {"command": "late"}, LONGEST_WAIT_S)))
    asking.start()

    for client in silent:
        client.close()

    asking.join(LONGEST_WAIT_S)
    assert late[0]["echo"] == {"command": "late"}


def test_many_clients_at_once_get_each_their_own_answer(served: Served) -> None:
    found: list[Any] = []

    def client(number: int) -> None:
        found.extend(ask(served.path, {"n": number * 100 + i}, LONGEST_WAIT_S)["echo"]["n"] for i in range(10))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST_WAIT_S)

    assert sorted(found) == sorted(number * 100 + i for number in range(20) for i in range(10))


def test_a_socket_that_a_dead_run_has_left_says_so_and_is_replaced(path: str) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(path)
    left.close()

    with pytest.raises(NotRunningError, match="nobody listens at"):
        ask(path, {"command": "status"})
    served = Served(path)

    assert ask(path, {"command": "status"})["ok"]
    served.close()
    assert not os.path.exists(path)


def test_a_socket_that_cannot_be_reached_is_named_and_why(path: str) -> None:
    Path(path).write_text("a file")

    with pytest.raises(WorldError, match=f"the control socket {path}/it cannot be used: Not a directory; be the user"):
        ask(f"{path}/it", {"command": "status"})


def test_who_does_not_answer_in_time_is_named(path: str) -> None:
    deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deaf.bind(path)
    deaf.listen()

    with pytest.raises(WorldError, match=f"the run does not answer at {path}: TimeoutError"):
        ask(path, {"command": "status"}, timeout_s=0.05)
    deaf.close()
