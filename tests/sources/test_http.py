"""What clients that send by HTTP are told, whatever they do."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from consecution import HttpSource, Pipeline, Producer, TextLines
from consecution.errors import MissingExtraError, SourceError, UsageError
from consecution.sources import http_server
from consecution.testing.sources import LARGE_BYTES, check_source
from tests.sources.serving import DEADLINE_S, Reading

JSON = {"content-type": "application/json"}
LINES = {"content-type": "application/x-ndjson"}


def client_of(source: HttpSource) -> httpx.Client:
    assert source.address is not None
    host, port = source.address
    return httpx.Client(base_url=f"http://{host}:{port}", timeout=DEADLINE_S)


def connect(source: HttpSource) -> socket.socket:
    assert source.address is not None
    return socket.create_connection(source.address, timeout=DEADLINE_S)


def read_status(connection: socket.socket) -> tuple[int, str]:
    """The status and all the rest of an answer, up to the end of the connection."""
    answer = b""
    while chunk := connection.recv(65536):
        answer += chunk
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture(scope="module")
def reading() -> Iterator[Reading]:
    """One that takes whatever comes, for many tests."""
    with Reading(HttpSource(0, max_body_bytes=1000)) as made:
        yield made


@pytest.fixture(scope="module")
def client(reading: Reading) -> Iterator[httpx.Client]:
    with client_of(reading.source) as made:
        yield made


@pytest.fixture
def taken(reading: Reading) -> Callable[[], list[Any]]:
    """All that was taken since the test began."""
    before = len(reading.items)
    return lambda: reading.items[before:]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as made:
        yield made


Taken = Callable[[], list[Any]]


# -- what is taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "items"),
    [
        (b'{"a": 1}', JSON, [{"a": 1}]),
        (b"[1, [2], null]", JSON, [1, [2], None]),
        (b"[]", JSON, []),
        (b" 7 \n", {"content-type": 'Application/JSON; charset="UTF-8"'}, [7]),
        (b'{"a": 1}\n[2]\r\n\n"\xc3\xbc"', LINES, [{"a": 1}, [2], "ü"]),
        (b"", LINES, []),
        (b"1\n2\n", {"content-type": "application/jsonl"}, [1, 2]),
    ],
)
def test_a_value_a_list_or_a_value_a_line(
    client: httpx.Client, taken: Taken, body: bytes, headers: dict[str, str], items: list[Any]
) -> None:
    answer = client.post("/", content=body, headers=headers)

    assert (answer.status_code, answer.json()) == (202, {"taken": len(items)})
    assert taken() == items


def test_one_who_waits_hears_that_all_is_complete_or_what_has_failed(client: httpx.Client, taken: Taken) -> None:
    good = client.post("/?wait=true", json=["good", "better"])
    bad = client.post("/?wait=true", json=["good", "bad"])

    assert (good.status_code, good.json()) == (200, {"taken": 2, "complete": True})
    failures = [{"node": "parse", "item": "'bad'", "error": "ValueError: no", "attempts": 1}]
    assert bad.status_code == 500
    assert bad.json() == {"taken": 2, "complete": True, "failed": 1, "failures": failures}


def test_failures_of_others_are_not_told(reading: Reading, client: httpx.Client, pool: ThreadPoolExecutor) -> None:
    bodies = ["bad" if n % 3 == 0 else f"good {n}" for n in range(60)]

    answers = list(pool.map(lambda body: client.post("/?wait=true", json=body), bodies))

    assert [answer.status_code for answer in answers] == [500 if body == "bad" else 200 for body in bodies]


def test_many_requests_share_a_batch(pool: ThreadPoolExecutor) -> None:
    with Reading(HttpSource(0), taking=False, most=1000) as reading, client_of(reading.source) as client:
        sent = [pool.submit(client.post, "/", json=n) for n in range(12)]
        wait_until(lambda: client.get("/health").json()["waiting"] == 12)
        reading.taking.set()

        assert [one.result().status_code for one in sent] == [202] * 12
    assert [sorted(batch) for batch in reading.batches] == [list(range(12))]


def test_no_answer_before_the_commit(pool: ThreadPoolExecutor) -> None:
    with Reading(HttpSource(0), committing=False) as reading, client_of(reading.source) as client:
        sent = pool.submit(client.post, "/", json=1)
        reading.wait_for(1)
        client.get("/health")
        assert not sent.done()

        reading.committing.set()

        assert sent.result().status_code == 202


# -- what is not -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "status", "line", "error"),
    [
        (b'{"a":\n 1,}', JSON, 400, 2, "line 2: expected JSON (Expecting property name enclosed in double quotes"),
        (b"", JSON, 400, 1, "line 1: expected JSON (Expecting value at column 1)"),
        (b"1 2", JSON, 400, 1, "Extra data at column 3"),
        (b'1\n2\n{"a"}\n', LINES, 400, 3, "line 3: expected JSON"),
        (b'1\n"\xff"\n', LINES, 400, 2, "line 2: byte 3 of the body is no UTF-8"),
        (b"NaN", JSON, 400, 1, "NaN is no JSON"),
        (b"[" * 999, JSON, 400, 1, "expected JSON"),
        (b"1" * 999, JSON, 202, None, None),
        (b"1" * 1001, JSON, 413, None, "the body has more than 1000 bytes: send fewer items at once"),
        (b"1", {}, 415, None, "expected Content-Type: application/json"),
        (b"1", {"content-type": "text/plain"}, 415, None, "found text/plain"),
        (b"1", {"content-type": "application/json; charset=latin-1"}, 415, None, "expected UTF-8"),
        (b"1", {**JSON, "content-encoding": "gzip"}, 415, None, "expected no Content-Encoding, found gzip"),
        (b"1", {**JSON, "idempotency-key": ""}, 400, None, "expected an Idempotency-Key of 1 to 255 characters"),
        (b"1", {**JSON, "idempotency-key": "k" * 256}, 400, None, "expected an Idempotency-Key"),
        (b"1", {**JSON, "host": "example.com:80"}, 403, None, "this is not 'example.com'"),
    ],
)
def test_what_is_no_request_is_told_why(
    client: httpx.Client,
    taken: Taken,
    body: bytes,
    headers: dict[str, str],
    status: int,
    line: int | None,
    error: str | None,
) -> None:
    answer = client.post("/", content=body, headers=headers)

    assert answer.status_code == status
    assert answer.json().get("line") == line
    assert error is None or error in answer.json()["error"]
    assert bool(taken()) == (status == 202)


def test_a_body_without_a_length_has_its_limit_too(client: httpx.Client, taken: Taken) -> None:
    answer = client.post("/", content=(b"1" * 100 for _ in range(1000)), headers=JSON)

    assert answer.status_code == 413
    assert taken() == []
    assert client.post("/", json=1).status_code == 202


def test_a_body_that_is_too_large_is_told_so_also_to_one_who_closes_the_connection(reading: Reading) -> None:
    host, port = reading.source.address
    request = urllib.request.Request(f"http://{host}:{port}/", b"1" * 20_000_000, JSON)

    with pytest.raises(urllib.error.HTTPError) as told:
        urllib.request.urlopen(request, timeout=30)

    assert told.value.code == 413
    told.value.close()


def test_elsewhere_there_is_nothing(client: httpx.Client) -> None:
    asked = [client.get("/"), client.post("/items", json=1), client.post("/?wait=perhaps", json=1)]

    assert [answer.status_code for answer in asked] == [405, 404, 400]
    assert "there is POST / for items, and GET /health" in asked[1].json()["error"]


def test_what_is_no_http_is_told_so_and_hurts_nobody(reading: Reading, client: httpx.Client) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"\r\n" * 10_000):
        with connect(reading.source) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            read_to_the_end(connection)

    assert client.post("/", json=1).status_code == 202


def read_to_the_end(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass


def test_one_who_goes_away_in_the_middle_hurts_nobody(reading: Reading, client: httpx.Client, taken: Taken) -> None:
    for part in (b"", b"1", b"12345"):
        with connect(reading.source) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
            connection.sendall(b"content-length: 5\r\n\r\n" + part)

    assert client.post("/", json="after").status_code == 202
    assert set(taken()) <= {12345, "after"}


# -- limits ----------------------------------------------------------------------------------------


def test_a_body_must_come_in_time() -> None:
    with Reading(HttpSource(0, body_within_s=0.3)) as reading, connect(reading.source) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
        slow.sendall(b"content-length: 5\r\n\r\n[1")

        status, body = read_status(slow)

    assert status == 408
    assert "the body did not come within 0.3 s" in body


def test_too_much_that_waits_is_refused(pool: ThreadPoolExecutor) -> None:
    with Reading(HttpSource(0, max_waiting_items=3), taking=False) as reading, client_of(reading.source) as client:
        sent = pool.submit(client.post, "/", json=[1, 2, 3, 4])
        wait_until(lambda: client.get("/health").json()["waiting"] == 4)

        refused = client.post("/", json=5)

        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "4 items wait to be taken already, nothing was taken" in refused.json()["error"]
        reading.taking.set()
        assert sent.result().status_code == 202


def test_bodies_that_are_on_their_way_take_room_too() -> None:
    source = HttpSource(0, max_body_bytes=1000, max_waiting_bytes=1000)
    with Reading(source) as reading, connect(source) as slow, client_of(source) as client:
        slow.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
        slow.sendall(b"content-length: 800\r\n\r\n" + b"1" * 700)
        wait_until(lambda: client.post("/", content=b"1" * 400, headers=JSON).status_code == 429)

        slow.sendall(b"1" * 100)
        reading.wait_for(1)

        wait_until(lambda: client.post("/", content=b"1" * 400, headers=JSON).status_code == 202)


def test_what_nobody_takes_is_refused_in_time_and_health_tells() -> None:
    with Reading(HttpSource(0, taken_within_s=0.3), taking=False) as reading, client_of(reading.source) as client:
        assert client.get("/health").status_code == 200

        refused = client.post("/", json=[1, 2])

        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "the pipeline takes no items just now, nothing was taken" in refused.json()["error"]
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "stalled", "waiting": 0})
        reading.taking.set()
        wait_until(lambda: client.get("/health").status_code == 200)
        assert client.post("/", json=3).status_code == 202
    assert reading.items == [3]


def test_one_connection_too_many_is_told_to_come_again() -> None:
    with Reading(HttpSource(0, max_connections=2)) as reading:
        first, second = connect(reading.source), connect(reading.source)
        with first, second, connect(reading.source) as third:
            assert read_status(third)[0] == 503
        wait_until(lambda: _is_served(reading.source))


def _is_served(source: HttpSource) -> bool:
    with client_of(source) as client:
        return client.post("/", json=1).status_code == 202


def test_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SILENT_S", 0.5)
    with Reading(HttpSource(0)) as reading, connect(reading.source) as silent:
        silent.sendall(b"POST / HT")

        assert silent.recv(1) == b""


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


# -- the end ---------------------------------------------------------------------------------------


def test_a_stop_answers_what_is_in_flight(pool: ThreadPoolExecutor) -> None:
    reading = Reading(HttpSource(0), committing=False)
    with reading, client_of(reading.source) as client, connect(reading.source) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
        slow.sendall(b"content-length: 5\r\n\r\n[1")
        in_batch = pool.submit(client.post, "/", json="in a batch")
        reading.wait_for(1)
        reading.taking.clear()
        waiting = pool.submit(client.post, "/", json="waiting")
        wait_until(lambda: client.get("/health").json()["waiting"] == 1)

        reading.close()

        assert [one.result().status_code for one in (in_batch, waiting)] == [503, 503]
        assert "not known how much" in in_batch.result().json()["error"]
        assert "nothing was taken" in waiting.result().json()["error"]
        status, body = read_status(slow)
        assert (status, "being stopped, nothing was taken" in body) == (503, True)


def test_the_same_object_serves_again(pool: ThreadPoolExecutor) -> None:
    source = HttpSource(0)
    for _ in range(2):
        with Reading(source) as reading, client_of(source) as client:
            assert client.post("/", json=1).status_code == 202
        assert reading.items == [1]
        assert source.address is None


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["file", "environment"])
def test_without_a_token_nobody_gets_in(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens").write_text("first\nsecond\n")
    monkeypatch.setenv("TOKEN", "first\nsecond")
    source = HttpSource(0, token_file=tmp_path / "tokens") if where == "file" else HttpSource(0, token_env="TOKEN")
    given = [None, "Bearer third", "Basic first", "first", "Bearer", "Bearer first", "bearer second"]

    with Reading(source) as reading, client_of(source) as client:
        answers = [client.post("/", json=1, headers={"authorization": one} if one else {}) for one in given]
        elsewhere = client.post("/", json=1, headers={"authorization": "Bearer first", "host": "example.com"})
        health = client.get("/health")

    assert [answer.status_code for answer in answers] == [401] * 5 + [202] * 2
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert (elsewhere.status_code, health.status_code) == (202, 200)
    assert reading.items == [1] * 3


def test_a_token_that_is_not_there_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_text("\n")
    monkeypatch.delenv("NO_TOKEN", raising=False)

    for options, found in (
        ({"token_file": tmp_path / "none"}, r"cannot be read: No such file or directory \(.*none\); mend"),
        ({"token_file": tmp_path / "empty"}, "holds no token: put one there"),
        ({"token_env": "NO_TOKEN"}, "the variable NO_TOKEN holds no token"),
    ):
        with pytest.raises(SourceError, match=found):
            HttpSource(0, **options).open(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"port": 99999}, "port=99999.*from 0 .* to 65535"),
        ({"port": "80"}, "port='80'.*from 0 .* to 65535"),
        ({"max_waiting_items": 0}, "max_waiting_items=0.*expected more than 0"),
        ({"body_within_s": -1}, "body_within_s=-1.*expected more than 0"),
        ({"keep_keys": 0}, "keep_keys=0.*expected more than 0"),
        ({"keep_keys": -1}, "keep_keys=-1.*expected more than 0"),
        ({"keep_keys_s": -60}, "keep_keys_s=-60.*expected more than 0"),
        ({"keep_keys_s": float("nan")}, "keep_keys_s=nan.*expected more than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        HttpSource(**options)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.com", ""])
def test_it_is_not_open_to_the_world_by_mistake(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="everybody who reaches this address could put items in; ask for a token"):
        HttpSource(0, host)

    HttpSource(0, host, allow_anyone=True)
    HttpSource(0, host, token_env="TOKEN")


def test_here_it_may_be_open(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        HttpSource(0, host)
    with pytest.raises(UsageError, match="token_env and token_file: give one of them"):
        HttpSource(0, token_env="TOKEN", token_file=tmp_path)


def test_an_address_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consecution.sources.listening.IN_USE_WAIT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SourceError, match=f"http: cannot listen at 127.0.0.1:{port}: Address already in use"):
            HttpSource(port).open(None)


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'consecution\[http\]'"):
        Producer("http").make_source()


# -- in a pipeline ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_a_pipeline_that_is_fed_by_http(mode: str, tmp_path: Path) -> None:
    port = free_port()
    pipeline = Pipeline(Producer("http", port=port) | TextLines("out", tmp_path / "out", format=json.dumps))
    asked: Future[list[int]] = Future()

    def ask() -> None:
        try:
            asked.set_result(send_when_ready(port))
        except BaseException as error:
            asked.set_exception(error)

    with pipeline.start(mode=mode, state_dir=tmp_path / "state", sync="process") as running:
        threading.Thread(target=ask, daemon=True).start()
        deadline_s = time.monotonic() + DEADLINE_S
        while not asked.done():
            running.join(0.05)
            assert time.monotonic() < deadline_s
        running.stop()

    assert asked.result() == [202, 200]
    assert sorted(map(json.loads, (tmp_path / "out").read_text().split())) == [1, 2, 3]


def test_requests_are_taken_however_long_nodes_are_at_an_item(tmp_path: Path) -> None:
    port = free_port()

    def take_long(item: Any) -> None:
        time.sleep(2.0)

    pipeline = Pipeline(Producer("http", port=port, taken_within_s=1.0) | take_long)
    with pipeline.start(mode="thread", state_dir=tmp_path / "state", sync="process") as running:
        with httpx.Client(base_url=f"http://localhost:{port}", timeout=DEADLINE_S) as client:
            wait_until(lambda: _answers(client))
            answers = [client.post("/", json=number).status_code for number in range(20)]
        running.abort()

    assert answers == [202] * 20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def send_when_ready(port: int) -> list[int]:
    with httpx.Client(base_url=f"http://localhost:{port}", timeout=DEADLINE_S) as client:
        wait_until(lambda: _answers(client))
        return [client.post("/", json=[1, 2]).status_code, client.post("/?wait=true", json=3).status_code]


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_consume_reads_it_too() -> None:
    source = HttpSource(0)
    heard: list[Any] = []

    def ask() -> None:
        wait_until(lambda: source.address is not None)
        with client_of(source) as client:
            heard.extend([client.post("/?wait=true", json=["a", "b"]).status_code])
            heard.extend([client.post("/", json=["end"]).status_code])

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    found = []
    for item in Producer(source):
        if item == "end":
            break
        found.append(item)
    asking.join(DEADLINE_S)

    assert found == ["a", "b"]
    assert heard == [200, 503]


def test_descriptors_are_given_back() -> None:
    source = HttpSource(0)

    def live() -> int:
        with Reading(source), client_of(source) as client:
            client.post("/", json=1)
        return len(os.listdir("/dev/fd"))

    live()
    assert live() == live()


def test_it_keeps_the_contract_of_sources(tmp_path: Path) -> None:
    def send(source: HttpSource, folder: Path, items: Any) -> None:
        with client_of(source) as client:
            for item in items:
                assert client.post("/", json=item).status_code == 202

    def flood(source: HttpSource, folder: Path) -> None:
        large = json.dumps(["x" * 100] * 5000).encode()
        with client_of(source) as client:
            for _ in range(LARGE_BYTES // len(large)):
                assert client.post("/?wait=true", content=large, headers=JSON).status_code in (429, 503, 202)

    items = [f"item {n}" for n in range(20)]
    check_source(
        lambda folder: HttpSource(0),
        items,
        folder=tmp_path,
        send=send,
        ends=False,
        make_large=lambda folder: HttpSource(0, max_body_bytes=1 << 20, max_waiting_bytes=2 << 20, taken_within_s=0.1),
        flood=flood,
    )
