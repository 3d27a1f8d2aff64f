"""A pause: nothing is read, what is open is finished, and the run goes on; in every engine."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from consecution import Map, Pipeline, Producer, Running
from tests.engines.misbehaving import wait_for

MODES = ("inline", "thread", "process")


def numbers() -> Iterator[int]:
    for number in itertools.count():
        yield number
        time.sleep(0.001)


def identity(item: Any) -> Any:
    return item


def driven(running: Running) -> threading.Thread:
    """An inline run moves only while somebody waits for it."""
    thread = threading.Thread(target=lambda: running.join(None), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("linger_ms", [0.0, 5000.0])
def test_a_paused_run_reads_nothing_until_it_is_resumed(mode: Any, linger_ms: float) -> None:
    running = Pipeline(Producer(numbers) | identity).start(mode=mode, sync="process", linger_ms=linger_ms)
    driver = driven(running)
    if not linger_ms:
        wait_for(lambda: running.status().completed > 0)

    running.pause()
    wait_for(lambda: running.status().state == "paused")
    wait_for(lambda: running.status().open == 0)
    before = running.status()
    assert running.status().emitted == before.emitted
    running.resume()
    assert running.status().state in ("running", "starting")
    if not linger_ms:
        wait_for(lambda: running.status().completed > before.completed)

    running.pause()
    report = running.stop()
    driver.join()
    assert (report.stopped, report.pending) == (True, 0)


def test_a_new_incarnation_of_the_source_stays_paused() -> None:
    running: Any = Pipeline(Producer(range(10**9)) | identity).start(mode="process", sync="process")
    wait_for(lambda: running.status().completed > 0)
    running.pause()
    wait_for(lambda: running.status().state == "paused" and running.status().open == 0)
    emitted = running.status().emitted

    pid = running.pids()["producer.0"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: running.pids().get("producer.0", pid) != pid and running.status().state == "paused")

    assert running.status().emitted == emitted
    assert running.stop().pending == 0


def test_a_run_may_be_paused_before_it_has_begun_to_read() -> None:
    running = Pipeline(Producer(range(10)) | identity).start(mode="process", sync="process")
    running.pause()
    running.resume()

    assert running.wait().completed == 10


@pytest.mark.parametrize("mode", MODES)
def test_all_sources_rest_and_all_go_on(mode: Any) -> None:
    first, second = (Producer(range(10**9), name=name) for name in ("first", "second"))
    running = Pipeline([first, second] | Map(identity)).start(mode=mode, sync="process", batch_size=10)
    driver = driven(running)
    wait_for(lambda: running.status().completed > 0)

    running.pause()
    wait_for(lambda: running.status().state == "paused" and running.status().open == 0)
    before = {node.node: node.items_in for node in running.status().nodes}
    assert {node.node: node.items_in for node in running.status().nodes} == before
    running.resume()
    wait_for(lambda: all(node.items_in > before[node.node] for node in running.status().nodes))

    running.stop()
    driver.join()
