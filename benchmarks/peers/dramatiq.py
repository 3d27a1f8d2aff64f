"""dramatiq with a Redis broker: messages to actors in worker processes of four threads; results in Redis.

The child starts a Redis server and the workers, sends, and waits until Redis says that all was done.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from benchmarks import cpu as burning
from benchmarks.airports import Writer, distance, pairs
from benchmarks.identity import identity as same
from benchmarks.peers import kill as killing
from benchmarks.peers.task import Latencies, Task, Total, attach, begun, current
from benchmarks.wordcount import digest

PORT = "BENCHMARK_REDIS_PORT"
THREADS = 4
LINES = 100
BURNS = 50
PAIRS = 500
POLL_S = 0.002
PATIENCE_S = 60
AFTER_KILL_S = 3

if PORT not in os.environ:
    with socket.create_server(("localhost", 0)) as server:
        os.environ[PORT] = str(server.getsockname()[1])

store = redis.Redis(port=int(os.environ[PORT]), decode_responses=True)
broker = RedisBroker(port=int(os.environ[PORT]))
dramatiq.set_broker(broker)

lock = threading.Lock()
"""What threads of a worker process share is written by one at a time."""


def _add(value: int) -> None:
    both = store.pipeline()
    both.incrby("sum", value)
    both.incr("done")
    both.execute()


@dramatiq.actor
def ping() -> None:
    store.incr("pings")


@dramatiq.actor
def pass_on(item: int) -> None:
    _add(same(item))


@dramatiq.actor
def burn(items: list[int]) -> None:
    _add(sum(map(burning.burn, items)))


@dramatiq.actor
def count(lines: list[str]) -> None:
    changes = store.pipeline()
    for word, times in Counter(itertools.chain.from_iterable(map(str.split, lines))).items():
        changes.hincrby("words", word, times)
    changes.incr("done")
    changes.execute()


@functools.cache
def _writer() -> Writer:
    return Writer(current().folder)


@functools.cache
def _late() -> Latencies:
    return Latencies()


@dramatiq.actor
def measure(paired: list[tuple[str, str]]) -> None:
    rows = [distance(attach((one, other))) for one, other in paired]
    with lock:
        writer = _writer()
        for row in rows:
            writer.add(row)
        writer.flush()
    store.incr("done")


@dramatiq.actor
def time_it(number: int, due_s: float) -> None:
    with lock:
        late = _late()
        late.take((same(number), due_s))
        last = late.count == current().size
    if last:
        late.close()
        store.set("done", 1)


@dramatiq.actor
def write(number: int, due_s: float) -> None:
    killing.write([killing.pass_on((number, due_s))])


@contextlib.contextmanager
def _redis(task: Task) -> Iterator[None]:
    durable = "yes" if task.work in ("durable", "kill") else "no"
    command = ["redis-server", "--port", os.environ[PORT], "--bind", "127.0.0.1", "--dir", str(task.folder)]
    command += ["--save", "", "--appendonly", durable, "--appendfsync", "everysec"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _until(_answers)
        yield
    finally:
        server.kill()
        server.wait()


def _answers() -> bool:
    try:
        return bool(store.ping())
    except redis.ConnectionError:
        return False


def _workers(task: Task) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dramatiq", "benchmarks.peers.dramatiq"]
    return subprocess.Popen([*command, "--processes", str(task.workers), "--threads", str(THREADS)])


@contextlib.contextmanager
def _running(task: Task) -> Iterator[None]:
    """Redis and the workers, which have answered: their start is not part of the work."""
    with _redis(task):
        workers = _workers(task)
        try:
            ping.send()
            _until(lambda: store.get("pings") == "1")
            begun()
            yield
        finally:
            workers.kill()
            workers.wait()


def _until(condition: Any) -> None:
    if not killing.wait_until(condition, PATIENCE_S):
        raise TimeoutError(f"not all was done within {PATIENCE_S} s; done: {store.get('done')}")


def _wait_for(messages: int) -> None:
    while int(store.get("done") or 0) < messages:
        time.sleep(POLL_S)


def _told(answer: int, last_s: float) -> None:
    total = Total()
    total.sum, total.last_s = answer, last_s
    total.close()


def identity(task: Task) -> None:
    with _running(task):
        for item in range(task.size):
            pass_on.send(item)
        _wait_for(task.size)
        _told(int(store.get("sum") or 0), time.time())


def cpu(task: Task) -> None:
    with _running(task):
        starts = range(0, task.size, BURNS)
        for start in starts:
            burn.send(list(range(start, min(start + BURNS, task.size))))
        _wait_for(len(starts))
        _told(int(store.get("sum") or 0), time.time())


def words(task: Task) -> None:
    lines = task.lines()
    with _running(task):
        starts = range(0, len(lines), LINES)
        for start in starts:
            count.send(lines[start : start + LINES])
        _wait_for(len(starts))
        last_s = time.time()
        _told(digest({word: int(times) for word, times in store.hgetall("words").items()}), last_s)


durable = words


def airports(task: Task) -> None:
    given = itertools.chain.from_iterable(map(pairs, task.airports()))
    sent = 0
    with _running(task):
        while paired := list(itertools.islice(given, PAIRS)):
            measure.send(paired)
            sent += 1
        _wait_for(sent)
        _told(0, time.time())


def latency(task: Task) -> None:
    with _running(task):
        for number, due_s in task.paced():
            time_it.send(number, due_s)
        _wait_for(1)


def kill(task: Task) -> None:
    """When a worker process dies, dramatiq's master ends; it is started again here, at once.

    What the dead one had in hand comes back only after Redis has not heard of it for a minute: that is not waited for.
    """
    with _redis(task):
        workers = _workers(task)
        ping.send()
        _until(lambda: store.get("pings") == "1")
        begun()
        striker = killing.strike()
        sender = threading.Thread(target=lambda: [write.send(*item) for item in task.paced()])
        sender.start()
        while sender.is_alive() or striker.is_alive():
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = workers.wait(POLL_S)
                print("dramatiq ended with", code, "and is started again at", time.time())
                workers = _workers(task)
        killing.wait_until(lambda: killing.all_written(task), AFTER_KILL_S)
        workers.kill()
        workers.wait()
