from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from consecution import HttpSource, Pipeline, Producer, TcpSource, ZmqSource
from consecution.errors import SourceError, UsageError
from consecution.source import Source
from consecution.sources import listening
from consecution.sources.listening import check_reach, is_loopback, listen_tcp, listen_unix
from tests.examples.programs import DEADLINE_S, wait_until


@pytest.fixture
def path() -> Iterator[Path]:
    """A path that is short enough for a socket."""
    made = Path(f"/tmp/consecution-listening-{os.getpid()}")
    yield made
    with contextlib.suppress(FileNotFoundError):
        made.unlink()


def test_asyncio_can_see_that_a_socket_is_tcp() -> None:
    """If not, it lets every second part of an answer wait for the client, 40 ms each time."""
    with listen_tcp("http", "127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_this_machine_is_reached_by_nobody_else(host: str) -> None:
    assert is_loopback(host)
    check_reach("tcp", host, allowed=False, remedy="")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "localhost.example.com"])
def test_any_other_host_must_be_meant(host: str) -> None:
    check_reach("tcp", host, allowed=True, remedy="")
    with pytest.raises(UsageError, match=r"put items in; do this, or keep to host='127\.0\.0\.1'"):
        check_reach("tcp", host, allowed=False, remedy="do this")


def test_a_name_that_is_no_address_is_told() -> None:
    with pytest.raises(SourceError, match=r"tcp: the address no such host:1 is none: [^[]+; mend"):
        listen_tcp("tcp", "no such host", 1)


def test_an_address_in_use_is_asked_for_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "IN_USE_WAIT_S", 60.0)
    first = listen_tcp("tcp", "127.0.0.1", 0)
    port = first.getsockname()[1]
    monkeypatch.setattr(listening.time, "sleep", lambda seconds: first.close())

    with listen_tcp("tcp", "127.0.0.1", port) as second:
        assert second.getsockname()[1] == port


def test_a_forked_child_keeps_no_address(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "IN_USE_WAIT_S", 0.0)
    by_port, by_path = listen_tcp("tcp", "127.0.0.1", 0), listen_unix("tcp", path)
    port = by_port.getsockname()[1]
    (go_on, leave), (ready, tell_ready) = os.pipe(), os.pipe()

    child = os.fork()
    if child == 0:
        os.close(leave)
        os.close(tell_ready)
        os.read(go_on, 1)
        os._exit(0)
    os.close(tell_ready)
    os.read(ready, 1)  # its end: the child has done what it does first
    try:
        for listener in (by_port, by_path):
            listener.close()
        for again in (listen_tcp("tcp", "127.0.0.1", port), listen_unix("tcp", path)):
            again.close()
    finally:
        os.close(leave)
        os.waitpid(child, 0)
    os.close(go_on)
    os.close(ready)


def test_a_socket_in_the_file_system_is_its_owners_alone(path: Path) -> None:
    with listen_unix("tcp", path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(SourceError, match=r"somebody listens at .* already"):
            listen_unix("tcp", path)


def test_what_a_dead_process_has_left_is_replaced(path: Path) -> None:
    listen_unix("tcp", path).close()
    assert path.exists()

    with listen_unix("tcp", path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")

    with pytest.raises(SourceError, match="is there, and no socket"):
        listen_unix("tcp", path)

    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="give a short path"):
        listen_unix("tcp", tmp_path / ("x" * 200))


@pytest.mark.parametrize(
    "source",
    [TcpSource(0), HttpSource(port=0), ZmqSource("tcp://127.0.0.1:*")],
    ids=lambda source: type(source).__name__,
)
def test_in_process_mode_the_program_is_told_where_its_worker_listens(source: Source) -> None:
    with Pipeline(Producer(source) | str).start(mode="process", robustness="none") as running:
        wait_until(running, lambda: source.address is not None)

        address = source.address
        host, port = address if isinstance(address, tuple) else address.removeprefix("tcp://").split(":")
        socket.create_connection((host, int(port)), timeout=DEADLINE_S).close()
        running.stop()

    assert source.address is None
