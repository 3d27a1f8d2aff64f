"""What clients that send lines are told, and what becomes of what they send."""

from __future__ import annotations

import contextlib
import select
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import Pipeline, Producer, TcpSource
from consecution.errors import BadRecordError, SourceError, UsageError
from consecution.source import Rejected
from consecution.sources import tcp
from consecution.testing.sources import LARGE_BYTES, check_source
from tests.sources.serving import DEADLINE_S, Reading


def connect(source: TcpSource) -> socket.socket:
    family = socket.AF_UNIX if isinstance(source.address, str) else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(DEADLINE_S)
    client.connect(source.address)
    return client


def send(source: TcpSource, *blocks: bytes) -> None:
    with connect(source) as client:
        for block in blocks:
            client.sendall(block)


def read_all(client: socket.socket) -> list[bytes]:
    """The lines a client is told, up to the end of the connection."""
    told = b""
    while block := client.recv(65536):
        told += block
    return told.splitlines()


def read_last(client: socket.socket) -> bytes:
    return read_all(client)[-1]


def read_until(client: socket.socket, line: bytes) -> None:
    told = b""
    while not told.endswith(line + b"\n"):
        block = client.recv(65536)
        assert block, told
        told += block


def shown(items: list[Any]) -> list[Any]:
    """What is rejected by its text and its error."""
    return [(item.item, str(item.error).split(": ")[1]) if type(item) is Rejected else item for item in items]


# -- lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "sent", "items"),
    [
        ("lines", b"a\n\n\xc3\xa4\r\n\xff\n", ["a", "", "ä\r", "\udcff"]),
        ("lines", b"one\nhalf", ["one", ("half", "the connection has ended before the newline; found 'half'")]),
        ("ndjson", b'{"a": 1}\n\n[2]\n', [{"a": 1}, [2]]),
        ("ndjson", b'1\n{"a"\n2\n', [1, ('{"a"', "expected a JSON value (Expecting ':' delimiter at column 5)"), 2]),
        ("lines", b"12345678\n123456789\n1\n", ["12345678", ("12345678", "it has more than 8 bytes"), "1"]),
        ("lines", b"x" * 100 + b"\ny\n", [("xxxxxxxx", "it has more than 8 bytes"), "y"]),
        ("lines", b"x" * 100, [("xxxxxxxx", "the connection has ended before the newline; found 'xxxxxxxx'")]),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_line_is_an_item_and_what_is_none_fails_alone(format: str, sent: bytes, items: list[Any], cut: bool) -> None:
    with Reading(TcpSource(0, format=format, max_line_bytes=8), most=1) as reading:
        send(reading.source, *([bytes([byte]) for byte in sent] if cut else [sent]))
        found = shown(reading.wait_for(len(items)))

    assert [item[0] if isinstance(item, tuple) else item for item in found] == [
        item[0] if isinstance(item, tuple) else item for item in items
    ]
    for one, other in zip(found, items, strict=True):
        assert not isinstance(other, tuple) or one[1].startswith(other[1].split("; found")[0])


def test_an_error_names_client_line_and_remedy() -> None:
    with Reading(TcpSource(0, format="ndjson", max_line_bytes=10)) as reading:
        send(reading.source, b"1\n" + b"2" * 11 + b"\n\n{\n")
        first, long, bad = reading.wait_for(3)

    assert first == 1
    assert isinstance(long.error, BadRecordError)
    assert "127.0.0.1:" in str(long.error)
    assert "line 2: it has more than 10 bytes (max_line_bytes)" in str(long.error)
    assert "line 4: expected a JSON value" in str(bad.error)


def test_each_of_many_clients_keeps_its_order() -> None:
    with Reading(TcpSource(0, max_clients=3), most=7) as reading:
        clients = [connect(reading.source) for _ in range(20)]
        for n in range(50):
            for number, client in enumerate(clients):
                client.sendall(b"%d %d\n" % (number, n))
        for client in clients:
            client.close()
        lines = [list(map(int, line.split())) for line in reading.wait_for(1000)]

    for number in range(20):
        assert [n for sender, n in lines if sender == number] == list(range(50))


def test_a_client_that_sends_much_does_not_keep_others_waiting() -> None:
    with Reading(TcpSource(0), taking=False, most=1000) as reading, connect(reading.source) as loud:
        loud.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                loud.send(b"loud\n" * 10_000)
        with connect(reading.source) as quiet:
            quiet.sendall(b"quiet\n")
            reading.taking.set()
            wait_until(lambda: "quiet" in reading.items)
        assert reading.items.index("quiet") < 30_000


@pytest.mark.parametrize("path", [b"/", b"/" + b"x" * 100_000])
def test_a_page_in_a_browser_is_shown_out(path: bytes) -> None:
    with Reading(TcpSource(0, max_line_bytes=1000)) as reading:
        with connect(reading.source) as browser, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            browser.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"drop it\n" * 10_000)
            assert browser.recv(65536).startswith(b"HTTP/1.1 400 ")
        send(reading.source, b"after\n")

        assert reading.wait_for(1) == ["after"]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


# -- acknowledging ---------------------------------------------------------------------------------


def test_a_client_is_told_how_many_of_its_lines_are_in_the_journal() -> None:
    source = TcpSource(0, format="ndjson", acknowledge=True)
    with Reading(source, committing=False, most=2) as reading, connect(source) as first, connect(source) as second:
        first.sendall(b"1\n\n2\nbad\n\n3\n\n")
        reading.wait_for(2)
        assert not select.select([first], [], [], 0.05)[0]

        reading.committing.set()

        read_until(first, b"7")
        second.sendall(b'"x"\n"half')
        second.shutdown(socket.SHUT_WR)
        assert read_last(second) == b"1"
        assert [item for item in reading.wait_for(5) if type(item) is not Rejected] == [1, 2, 3, "x"]


def test_one_that_does_not_listen_is_told_the_last_number_and_one_that_has_gone_hurts_nobody(tmp_path: Path) -> None:
    source = TcpSource(path=tmp_path / "in", acknowledge=True)  # A Unix socket has room for some hundreds of answers.
    with Reading(source, most=1) as reading, connect(source) as deaf:
        deaf.sendall(b"x\n" * 2000)
        gone = connect(source)
        gone.sendall(b"y\n" * 100)
        gone.close()
        reading.wait_for(2100)
        with connect(source) as third:
            third.sendall(b"z\n")
            read_until(third, b"1")

        deaf.shutdown(socket.SHUT_WR)

        told = read_all(deaf)
        assert told[-1] == b"2000"
        assert len(told) < 2000


def test_a_stop_tells_each_what_was_taken(tmp_path: Path) -> None:
    source = TcpSource(0, acknowledge=True)
    taken: list[str] = []
    pipeline = Pipeline(Producer(source) | taken.append)
    with pipeline.start(mode="thread", state_dir=tmp_path, sync="process") as running:
        wait_until(lambda: source.address is not None)
        with connect(source) as client:
            client.sendall(b"line\n" * 200_000)
            wait_until(lambda: taken != [])
            report = running.stop()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # where some had not even arrived
                client.sendall(b"more\n")

            told = int(read_last(client))

    assert told == report.completed == len(taken)


def test_a_run_goes_on_at_the_same_address_with_what_is_sent_again(tmp_path: Path) -> None:
    source = TcpSource(path=tmp_path / "in", acknowledge=True)
    lines = [f"line {n}" for n in range(3000)]
    found: list[str] = []
    told = 0
    pipeline = Pipeline(Producer(source) | found.append)
    while told < len(lines):
        with pipeline.start(mode="thread", state_dir=tmp_path / "state", sync="process") as running:
            wait_until(lambda: source.address is not None)
            with connect(source) as client:
                client.sendall("".join(f"{line}\n" for line in lines[told : told + 1000]).encode())
                client.shutdown(socket.SHUT_WR)
                told += int(read_last(client))
            running.stop()

    assert found == lines
    assert not (tmp_path / "in").exists()


# -- who may ---------------------------------------------------------------------------------------


def test_a_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "in"
    with Reading(TcpSource(path=path)) as reading:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        send(reading.source, b"1\n")
        assert reading.wait_for(1) == ["1"]
        with pytest.raises(SourceError, match=r"somebody listens at .* already"):
            TcpSource(path=path).open(None)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, r"give port=\.\.\., or path=\.\.\. for a Unix socket"),
        ({"port": 1, "path": "x"}, r"give port=\.\.\., or path=\.\.\. for a Unix socket"),
        ({"port": 1, "host": "0.0.0.0"}, r"everybody who reaches this address .*allow_anyone=True"),
        ({"port": 70000}, "port=70000.*from 0 .* to 65535"),
        ({"port": 1, "format": "csv"}, "expected one of 'lines', 'ndjson'"),
        ({"port": 1, "max_clients": 0}, "must be at least 1"),
        ({"port": 1, "encoding": "utf-16"}, "does not write newlines and ASCII as single bytes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        Producer("tcp", **options).make_source()


# -- the contract ----------------------------------------------------------------------------------


def test_it_keeps_the_contract_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "LONGEST_WAIT_S", 0.02)

    def make(folder: Path) -> TcpSource:
        return TcpSource(0, format="ndjson", acknowledge=True)

    def send_and_hear(source: TcpSource, folder: Path, items: Any) -> None:
        with connect(source) as client:
            client.sendall("".join(f'"{item}"\n' for item in items).encode())
            client.shutdown(socket.SHUT_WR)
            assert read_last(client) == b"%d" % len(items)

    def send_bad(source: TcpSource, folder: Path) -> None:
        send(source, b'{\n\xff\n"' + '"\n"'.join(items).encode() + b'"\n')

    def flood(source: TcpSource, folder: Path) -> None:
        block = b'"%s"\n' % (b"x" * 100) * 1000
        for _ in range(8):
            connect(source).close()
        send(source, *[block] * (LARGE_BYTES // len(block)))

    items = [f"item {n}" for n in range(20)]
    check_source(
        make,
        items,
        folder=tmp_path,
        send=send_and_hear,
        ends=False,
        make_bad=make,
        send_bad=send_bad,
        make_large=make,
        flood=flood,
        most_bytes=4 << 20,
    )
