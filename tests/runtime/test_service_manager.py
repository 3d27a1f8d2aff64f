"""What a run tells the service manager, over a real socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consecution import Pipeline, Producer
from consecution.errors import ConsecutionError
from consecution.runtime.service_manager import LONGER_S, STATUS_EVERY_S, ServiceManager
from tests.conftest import WriteModule
from tests.engines.nodes import ReprRaises
from tests.notify_socket import LONGEST_WAIT_S, NotifySocket

WATCHDOG_S = 10.0
MORE_TIME = f"EXTEND_TIMEOUT_USEC={LONGER_S * 1_000_000}"
NO_SIGN_S = 1.0


@pytest.fixture
def manager() -> Iterator[NotifySocket]:
    made = NotifySocket()
    yield made
    made.close()


class Told:
    """What a loop would tell, on a clock that only the test moves."""

    def __init__(self, manager: NotifySocket) -> None:
        self.now_s = 100.0
        self._manager = manager
        self._told = ServiceManager(manager.address, WATCHDOG_S, clock=lambda: self.now_s)

    def turn(self, state: str, *, ready: bool) -> list[str]:
        self._told.turn(state, ready=ready, describe=lambda: f"{state}: 7 done,\n0 pending")
        return self._manager.read_all()

    def end(self, said: str, *, failed: bool = False) -> list[str]:
        self._told.end(said, failed=failed)
        return self._manager.read_all()


def test_each_word_is_said_once_and_a_start_or_stop_asks_for_time(manager: NotifySocket) -> None:
    told = Told(manager)

    assert told.turn("starting", ready=False) == ["STATUS=starting: 7 done, 0 pending", MORE_TIME, "WATCHDOG=1"]
    assert told.turn("starting", ready=False) == []
    told.now_s += STATUS_EVERY_S
    assert MORE_TIME in told.turn("starting", ready=False)
    assert told.turn("running", ready=True) == ["READY=1", "STATUS=running: 7 done, 0 pending"]
    assert told.turn("recovering", ready=False) == ["STATUS=recovering: 7 done, 0 pending", MORE_TIME]
    assert told.turn("running", ready=True) == ["STATUS=running: 7 done, 0 pending"]
    assert told.turn("stopping", ready=True)[:1] == ["STOPPING=1"]
    assert told.turn("stopping", ready=True) == []
    assert told.end("stopped: 7 done") == ["STATUS=stopped: 7 done"]


def test_a_sign_of_life_is_sent_at_half_the_time_of_the_watchdog(manager: NotifySocket) -> None:
    told = Told(manager)
    told.turn("running", ready=True)

    told.now_s += WATCHDOG_S / 2 - 0.1
    told.turn("running", ready=True)
    assert manager.lines.count("WATCHDOG=1") == 1
    told.now_s += 0.1
    assert told.turn("running", ready=True)[-1] == "WATCHDOG=1"


def test_what_could_not_be_sent_is_sent_at_the_next_turn(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    told = ServiceManager(address)
    told.turn("running", ready=True, describe=lambda: "running")  # nobody listens yet
    manager = NotifySocket(Path(address))

    told.turn("running", ready=True, describe=lambda: "running")
    assert manager.read_all() == ["READY=1", "STATUS=running"]
    manager.close()


def test_a_run_that_is_over_at_once_has_started_and_one_that_failed_has_not(manager: NotifySocket) -> None:
    assert Told(manager).end("finished") == ["READY=1", "STATUS=finished"]
    assert Told(manager).end("failed: no", failed=True) == ["STATUS=failed: no"]


@pytest.mark.parametrize(
    ("variables", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(variables: dict[str, str], watchdog_s: float | None) -> None:
    found = ServiceManager.of({"NOTIFY_SOCKET": "/run/notify", **variables})

    assert found is not None
    assert found._watchdog_s == watchdog_s


@pytest.mark.parametrize("variables", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_socket_of_this_machine_nobody_is_told(variables: dict[str, str]) -> None:
    assert ServiceManager.of(variables) is None


def test_a_supervisor_whose_loop_hangs_sends_no_sign_of_life(
    manager: NotifySocket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in manager.environment(watchdog_s=0.2).items():
        monkeypatch.setenv(name, value)
    hang, hangs, go_on = threading.Event(), threading.Event(), threading.Event()
    running: Any = Pipeline(Producer("manual") | str).start(mode="process", state_dir=tmp_path / "state")
    supervisor = running._supervisor
    wait = supervisor._wait

    def wait_perhaps_long(objects: list[Any], timeout_s: float) -> list[Any]:
        if hang.is_set():
            hangs.set()
            go_on.wait(LONGEST_WAIT_S)
        return wait(objects, timeout_s)  # type: ignore[no-any-return]

    supervisor._wait = wait_perhaps_long
    with running:
        manager.wait_for("READY=1")
        manager.wait_for("WATCHDOG=1")
        hang.set()
        assert hangs.wait(LONGEST_WAIT_S)
        manager.read_all()
        running.push(7)  # everybody else is at work

        assert manager.read(NO_SIGN_S) == []
        go_on.set()
        manager.wait_for("WATCHDOG=1")


def test_a_run_that_ends_with_an_error_without_a_text_says_so_all_the_same(
    manager: NotifySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mute(Pipeline):
        def end(self) -> None:
            raise ReprRaises

    for name, value in manager.environment().items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ReprRaises):
        Mute(Producer([1]) | str).start(mode="process", robustness="none").wait(LONGEST_WAIT_S)

    assert any("failed: ReprRaises" in line for line in manager.read_all())


ENDLESS = """
import itertools, os, time
from consecution import Pipeline, Producer

def numbers():
    for number in itertools.count():
        yield number
        time.sleep(0.002)

def look(number):
    if number == 0:
        print("variables:", [name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC") if name in os.environ])
    return number

pipeline = Pipeline(Producer(numbers) | look)
"""


def test_a_service_says_when_it_is_ready_how_it_is_and_that_it_stops(write_module: WriteModule, tmp_path: Path) -> None:
    write_module("etl", ENDLESS)
    manager = NotifySocket(tmp_path / "notify")
    service = subprocess.Popen(
        [sys.executable, "-m", "consecution", "run", "etl.py", "--state-dir", "state", "--quiet"],
        env=manager.environment(watchdog_s=0.5),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        started = manager.wait_for("READY=1")
        manager.wait_for("WATCHDOG=1")
        service.send_signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        _, log = service.communicate(timeout=LONGEST_WAIT_S)
        ended = manager.read_all()
    finally:
        service.kill()
        service.wait()
        manager.close()

    assert service.returncode == 0, log
    assert started[0].startswith("STATUS=starting")
    assert any(line.startswith("STATUS=running: ") for line in manager.lines)
    assert ended[-1].startswith("STATUS=stopped: ")
    assert (manager.lines.count("READY=1"), manager.lines.count("STOPPING=1")) == (1, 1)
    assert "variables: []" in log


def test_a_run_that_cannot_start_says_why(manager: NotifySocket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in manager.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("consecution.sources.listening.IN_USE_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConsecutionError):
        Pipeline(Producer([1]) | str).run(mode="process", metrics_port=taken.getsockname()[1])

    said = manager.read_all()
    assert len(said) == 1
    assert said[0].startswith("STATUS=failed: SourceError: metrics_port: cannot listen at 127.0.0.1:")


def test_a_run_that_fails_says_why(manager: NotifySocket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in manager.environment().items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConsecutionError):
        Pipeline(Producer([1]) | os._exit).run(mode="process", state_dir=tmp_path / "state", max_restarts=0)

    manager.read_all()
    assert manager.lines[-1].startswith("STATUS=failed: WorkerError: _exit.0: died")
