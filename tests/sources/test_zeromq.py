"""What becomes of messages that others push."""

from __future__ import annotations

import os
import pickle
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from consecution import Pipeline, Producer, ZmqSource
from consecution.errors import SourceError, UsageError
from consecution.source import Rejected
from consecution.sources import listening, zeromq
from consecution.testing.sources import LARGE_BYTES, check_source
from tests.sources.serving import DEADLINE_S, Reading

ANY = "tcp://127.0.0.1:*"


@contextmanager
def pushing(endpoint: str, *, bind: bool = False) -> Iterator[Any]:
    with zmq.Context() as context, context.socket(zmq.PUSH) as sender:
        sender.setsockopt(zmq.LINGER, int(DEADLINE_S * 1000))
        sender.setsockopt(zmq.SNDTIMEO, int(DEADLINE_S * 1000))
        (sender.bind if bind else sender.connect)(endpoint)
        yield sender


def send(source: ZmqSource, *messages: bytes) -> None:
    assert source.address is not None
    with pushing(source.address) as sender:
        for message in messages:
            sender.send(message)


# -- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "messages", "items"),
    [
        ("bytes", [b"", b"\x00\xff"], [b"", b"\x00\xff"]),
        ("text", ["ä\n".encode(), b"\xff", b""], ["ä\n", "expected text ('utf-8' codec", ""]),
        ("json", [b'{"a": [1]}', b"{", b"2"], [{"a": [1]}, "expected json (Expecting property name", 2]),
        ("json", [b"[NaN]", b"-Infinity", b"2"], ["expected json (NaN is no JSON)", "expected json (-Infinity is", 2]),
        ("json", [b"[" * 100_000, b"2"], ["expected json (maximum recursion", 2]),
        ("msgpack", [msgpack.packb({1: [b"x", "y"]})], [{1: [b"x", "y"]}]),
        ("msgpack", [b"\xdd\xff\xff\xff\xff", b"", b"\x01\x02", b"\x81\x90\x01"], ["expected msgpack ("] * 4),
        ("msgpack", [b"\x91" * 100_000, pickle.dumps(os.getcwd)], ["expected msgpack ("] * 2),
    ],
)
def test_a_message_is_an_item_and_what_is_none_fails_alone(
    format: str, messages: list[bytes], items: list[Any]
) -> None:
    with Reading(ZmqSource(ANY, format=format)) as reading:
        send(reading.source, *messages)
        found = reading.wait_for(len(items))

    for message, one, other in zip(messages, found, items, strict=True):
        if type(one) is Rejected:
            assert one.item == message
            assert str(one.error).startswith(f"zmq: {other}")
        else:
            assert one == other


def test_a_message_of_several_parts_is_set_apart_whole() -> None:
    with Reading(ZmqSource(ANY)) as reading, pushing(reading.source.address) as sender:
        sender.send_multipart([b"a", b"b", b"c"])
        sender.send(b"d")
        rejected, item = reading.wait_for(2)

    assert rejected.item == [b"a", b"b", b"c"]
    assert "expected a message of one part, found 3" in str(rejected.error)
    assert item == b"d"


def test_a_message_that_is_too_large_does_not_come_in() -> None:
    with Reading(ZmqSource(ANY, max_message_bytes=100)) as reading:
        send(reading.source, b"x" * 100)
        with pushing(reading.source.address) as sender:
            sender.setsockopt(zmq.LINGER, 0)
            sender.send(b"x" * 101)
            send(reading.source, b"after")
            assert reading.wait_for(2) == [b"x" * 100, b"after"]


def test_it_may_connect_to_several_that_come_and_go(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/out"
    with Reading(ZmqSource(endpoint, bind=False, format="text")) as reading:
        for n in range(3):
            with pushing(endpoint, bind=True) as sender:
                sender.send_string(f"sender {n}")
                reading.wait_for(n + 1)

    assert reading.items == ["sender 0", "sender 1", "sender 2"]


def test_what_is_sent_while_no_run_is_on_waits_at_the_sender(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/in"
    found: list[Any] = []
    deadline_s = time.monotonic() + DEADLINE_S
    pipeline = Pipeline(Producer("zmq", endpoint, format="json") | found.append)

    with pushing(endpoint) as sender:
        for life in range(2):
            for n in range(1000):
                sender.send_json([life, n])
            with pipeline.start(mode="thread", state_dir=tmp_path / "state", sync="process") as running:
                while len(found) < 1000 * (life + 1):
                    assert time.monotonic() < deadline_s
                    time.sleep(0.01)
                running.stop()

    assert found == [[life, n] for life in range(2) for n in range(1000)]


# -- who may ---------------------------------------------------------------------------------------


def test_a_page_in_a_browser_does_not_come_in() -> None:
    """Without a guard libzmq takes lines of the request for lengths, and what follows for messages."""
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:109.0)\r\n\r\n"
    with Reading(ZmqSource(ANY)) as reading:
        host, port = reading.source.address.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as browser:
            browser.sendall(request + b"\n\0delete me" * 50)
            with suppress(ConnectionResetError):
                while browser.recv(100):
                    pass
        send(reading.source, b"after")

        assert reading.wait_for(1) == [b"after"]


def test_a_socket_file_is_for_its_owner_and_is_not_taken_from_another(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/in"
    with Reading(ZmqSource(endpoint)) as reading:
        assert stat.S_IMODE((tmp_path / "in").stat().st_mode) == 0o600
        with pytest.raises(SourceError, match=r"somebody listens at .* already"):
            ZmqSource(endpoint).open(None)
        send(reading.source, b"1")
        assert reading.wait_for(1) == [b"1"]


def test_one_that_a_dead_process_has_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(tmp_path / "in"))
    with Reading(ZmqSource(f"ipc://{tmp_path}/in")) as reading:
        send(reading.source, b"1")
        assert reading.wait_for(1) == [b"1"]


def test_an_endpoint_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zeromq, "IN_USE_WAIT_S", 0)
    with listening.listen_tcp("test", "127.0.0.1", 0) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SourceError, match=rf"cannot bind to {endpoint}: Address already in use"):
            ZmqSource(endpoint).open(None)
    with pytest.raises(SourceError, match="No such file or directory"):
        ZmqSource(f"ipc://{tmp_path}/missing/in").open(None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"endpoint": "tcp://*:5170"}, r"everybody who reaches this address .*allow_anyone=True"),
        ({"endpoint": "tcp://0.0.0.0:5170"}, "everybody who reaches this address"),
        ({"endpoint": "inproc://x"}, r"expected an endpoint as 'tcp://127\.0\.0\.1:5170'"),
        ({"endpoint": "ipc://@open-to-all"}, "expected an endpoint"),
        ({"endpoint": ANY, "format": "pickle"}, "expected one of 'bytes', 'text', 'json', 'msgpack'"),
        ({"endpoint": ANY, "max_waiting": 0}, "must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        Producer("zmq", **options).make_source()


def test_it_connects_to_other_machines_and_binds_for_them_when_told() -> None:
    for options in ({"bind": False}, {"allow_anyone": True}):
        Producer("zmq", "tcp://192.0.2.1:5170", **options).make_source()
    Producer("zmq", "tcp://[::1]:5170").make_source()


# -- the contract ----------------------------------------------------------------------------------


def test_it_keeps_the_contract_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeromq, "LONGEST_WAIT_S", 0.02)

    def send_items(source: ZmqSource, folder: Path, items: Any) -> None:
        send(source, *(f'"{item}"'.encode() for item in items))

    def send_bad(source: ZmqSource, folder: Path) -> None:
        send(source, b"{", b"\xff", *(f'"{item}"'.encode() for item in items))

    def flood(source: ZmqSource, folder: Path) -> None:
        message = b"x" * 10_000
        with pushing(source.address or "") as sender:
            sender.setsockopt(zmq.LINGER, 0)
            sender.setsockopt(zmq.SNDHWM, 10)
            sender.setsockopt(zmq.SNDTIMEO, 1000)
            with pytest.raises(zmq.Again):
                send_much(sender, message)

    def send_much(sender: Any, message: bytes) -> None:
        for _ in range(LARGE_BYTES // len(message)):
            sender.send(message)

    items = [f"item {n}" for n in range(20)]
    check_source(
        lambda folder: ZmqSource(ANY, format="json"),
        items,
        folder=tmp_path,
        send=send_items,
        ends=False,
        make_bad=lambda folder: ZmqSource(ANY, format="json"),
        send_bad=send_bad,
        make_large=lambda folder: ZmqSource(ANY, max_waiting=10),
        flood=flood,
        most_bytes=1 << 20,
    )
