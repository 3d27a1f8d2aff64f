"""The HTTP server for those who watch: what it answers, whoever asks, and whatever hangs."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from consecution import KeyedNode, Pipeline, Producer
from consecution.cli.outside import describe
from consecution.engines import process
from consecution.errors import ConsecutionError, OptionError
from consecution.report import NodeCounts, SourceCounts, Status, TaskCounts
from consecution.runtime.endpoint import MOST_CLIENTS, Endpoint
from consecution.runtime.metrics import METRICS, STATES
from consecution.runtime.outside import Outside
from tests.docs.pages import ROOT

LONGEST_WAIT_S = 30.0
STATUS = Status(
    "running",
    emitted=30,
    completed=20,
    failed=4,
    pending=10,
    replayed=2,
    restarts=1,
    seconds=8.0,
    nodes=(NodeCounts("b", 2, 20, 20, 5, 1.5),),
    pending_below=6,
    handled=3,
    sources=(SourceCounts("a", 30, 20, 4, 10),),
    tasks=(
        TaskCounts("a.0", "a", 77, 30, 30, 0, 3, 0.5, 0.25, 0.125, 0, 8192),
        TaskCounts("b.0", "b", 78, 11, 12, 5, 2, 1.0, 0.5, 0.75, 4, 4096),
    ),
)


class Run:
    """What is watched here is whatever the test says."""

    def __init__(self) -> None:
        self.not_ready = self.not_live = ""

    def status(self) -> Status:
        return STATUS

    def why_not_ready(self) -> str:
        return self.not_ready

    def why_not_live(self) -> str:
        return self.not_live


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_WAIT_S)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def samples(port: int) -> dict[tuple[str, ...], float]:
    """(name, labels ...) → value."""
    code, text = ask(port, "/metrics")
    assert code == 200
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


@pytest.fixture
def run() -> Run:
    return Run()


@pytest.fixture
def endpoint(run: Run) -> Iterator[Endpoint]:
    made = Endpoint(run, "127.0.0.1", 0)
    yield made
    made.close()


def test_every_metric_tells_what_the_status_tells(endpoint: Endpoint) -> None:
    found = samples(endpoint.port)

    assert {name for name, *_ in found} == {metric.name for metric in METRICS}
    assert {state: found["consecution_state", state] for state in STATES} == {s: s == "running" for s in STATES}
    assert found["consecution_failed_items",] == 4
    assert found["consecution_handled_items_total",] == 3
    assert found["consecution_source_pending_items", "a"] == 10
    of_b = [found[metric.name, "b", "b.0"] for metric in METRICS if metric.of == "task"]
    assert of_b == [11, 12, 5, 2, 1.0, 0.5, 0.75, 4, 4096]


def test_every_metric_is_documented_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `consecution_")]

    assert rows == [
        f"| `{metric.name}` | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} |"
        for metric in METRICS
    ]


@pytest.mark.parametrize(("path", "name"), [("/readyz", "not_ready"), ("/livez", "not_live")])
def test_a_probe_says_why_not(endpoint: Endpoint, run: Run, path: str, name: str) -> None:
    assert ask(endpoint.port, path) == (200, "ok\n")
    setattr(run, name, "it stands still")
    assert ask(endpoint.port, path) == (503, "it stands still\n")


def test_without_the_extra_there_are_probes_and_an_answer_that_names_it(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.exposition", None)

    assert ask(endpoint.port, "/livez") == (200, "ok\n")
    code, text = ask(endpoint.port, "/metrics")
    assert code == 501
    assert "pip install 'consecution[metrics]'" in text


def test_what_is_not_there_is_told_what_is(endpoint: Endpoint) -> None:
    assert ask(endpoint.port, "/health?x=1") == (
        404,
        "'/health?x=1' is not here; there are /metrics, /livez, /readyz\n",
    )
    assert ask(endpoint.port, "/livez?verbose", "HEAD") == (200, "")
    assert ask(endpoint.port, "/livez", "POST")[0] == 501


def test_clients_that_say_nothing_hold_nobody_up_and_are_not_too_many(endpoint: Endpoint) -> None:
    silent = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(MOST_CLIENTS - 1)]
    assert ask(endpoint.port, "/livez")[0] == 200

    deadline_s = time.monotonic() + LONGEST_WAIT_S
    while True:
        silent.append(socket.create_connection(("127.0.0.1", endpoint.port)))
        try:
            ask(endpoint.port, "/livez")
        except (ConnectionError, http.client.HTTPException):
            break
        assert time.monotonic() < deadline_s
    for connection in silent:
        connection.close()


# -- of a run ------------------------------------------------------------------------------------


class Total(KeyedNode):
    def key(self, item: int) -> int:
        return item % 2

    def process(self, item: int) -> None:
        self.state["total"] = self.state.get("total", 0) + item


def wait_for(port: int, path: str, code: int) -> str:
    deadline_s = time.monotonic() + LONGEST_WAIT_S
    while (answer := ask(port, path))[0] != code:
        assert time.monotonic() < deadline_s, answer
        time.sleep(0.02)
    return answer[1]


def test_a_run_is_watched_at_the_port_that_its_status_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(Producer("manual", name="items") | Total("total"))
    running: Any = pipeline.start(mode="process", state_dir=tmp_path / "state", metrics_port=0)
    with running:
        sight = Outside(tmp_path / "state").see()
        port = sight.metrics_port
        assert port is not None
        assert f", metrics at port {port}\n" in describe(sight)
        wait_for(port, "/readyz", 200)
        for number in range(10):
            running.push(number).wait(LONGEST_WAIT_S)
        counted = (
            ("consecution_source_emitted_items_total", "items"),
            ("consecution_task_in_items_total", "total", "total.0"),
        )
        deadline_s = time.monotonic() + LONGEST_WAIT_S
        while [(found := samples(port))[name] for name in counted] != [10, 10]:
            assert time.monotonic() < deadline_s, found
        assert found["consecution_state", "running"] == 1
        assert found["consecution_task_store_bytes", "total", "total.0"] > 0

        wait, hang, go_on = running._supervisor._wait, threading.Event(), threading.Event()
        monkeypatch.setattr(process, "LIVE_WITHIN_S", 0.3)
        wait_for(port, "/livez", 200)
        running._supervisor._wait = lambda *a: (hang.wait(0) and go_on.wait(LONGEST_WAIT_S), wait(*a))[1]
        hang.set()
        assert "the supervisor's loop has not come round" in wait_for(port, "/livez", 503)
        running._supervisor.stop()
        assert wait_for(port, "/readyz", 503) == "the run is stopping\n"
        go_on.set()

    with pytest.raises(ConnectionRefusedError):
        ask(port, "/livez")


def test_a_run_whose_port_is_taken_says_so_and_leaves_nothing_behind(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consecution.sources.listening.IN_USE_WAIT_S", 0.0)
    pipeline = Pipeline(Producer([1]) | str)

    with pytest.raises(ConsecutionError, match=f"metrics_port: cannot listen at 127.0.0.1:{endpoint.port}: Address"):
        pipeline.run(mode="process", state_dir=tmp_path / "state", metrics_port=endpoint.port)
    assert pipeline.run(mode="process", state_dir=tmp_path / "state").completed == 1


def test_only_a_run_in_process_mode_has_metrics() -> None:
    with pytest.raises(OptionError, match="metrics_port=0 goes with mode='process'; this run has mode='thread'"):
        Pipeline(Producer([1]) | str).run(mode="thread", metrics_port=0)
