"""``python -m benchmarks.hops``: how late are items that cross four ZeroMQ sockets, with nothing done to them?

Three processes: a source sends each number when it is due, to a relay, which sends it to a sink; the sink tells the
source, and that tells the sink, which only then takes the number. Those are the four messages that an item of the work
``latency`` waits for, one after another, without a journal, a frame or a guarantee: what its latency cannot be below.
"""

from __future__ import annotations

import argparse
import multiprocessing
import select
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import zmq

from benchmarks.neighbours import watched

RATE = 2000
ITEMS = 5000
WAIT_S = 30
SENT, DECIDED = b"s", b"d"


def _open(folder: Path, own: str, *others: str) -> tuple[zmq.Socket[bytes], list[zmq.Socket[bytes]]]:
    """The socket to read from, and one to each of the others."""
    context = zmq.Context.instance()
    inbox = context.socket(zmq.PULL)
    inbox.bind(f"ipc://{folder / own}")
    outboxes = [context.socket(zmq.PUSH) for _ in others]
    for other, outbox in zip(others, outboxes, strict=True):
        outbox.connect(f"ipc://{folder / other}")
    return inbox, outboxes


def _there(inbox: zmq.Socket[bytes], wait_s: float) -> Iterator[bytes]:
    """The messages that are there now, or are as soon as there is one."""
    select.select([inbox.fileno()], [], [], wait_s)
    while inbox.poll(0):
        yield inbox.recv(zmq.NOBLOCK)


def source(folder: Path, items: int, rate: float) -> None:
    inbox, (relay, sink) = _open(folder, "source", "relay", "sink")
    started_s, sent, decided = time.time() + 0.5, 0, 0
    while decided < items:
        while sent < items and (due_s := started_s + sent / rate) <= time.time():
            relay.send(SENT + repr(due_s).encode())
            sent += 1
        for message in _there(inbox, max(0.0, started_s + sent / rate - time.time()) if sent < items else WAIT_S):
            sink.send(DECIDED + message[1:])
            decided += 1


def relay(folder: Path) -> None:
    inbox, (sink,) = _open(folder, "relay", "sink")
    while True:
        for message in _there(inbox, WAIT_S):
            sink.send(message)


def sink(folder: Path, items: int, tell: Callable[[list[float]], None]) -> None:
    """Tells how late each number was, but for the first fifth: that found processes that have just started."""
    inbox, (source,) = _open(folder, "sink", "source")
    late_s: list[float] = []
    while len(late_s) < items:
        for message in _there(inbox, WAIT_S):
            if message.startswith(SENT):
                source.send(message)
            else:
                late_s.append(time.time() - float(message[1:]))
    tell(late_s[items // 5 :])


def measure(items: int = ITEMS, rate: float = RATE) -> list[float]:
    """Seconds that each number was late, sorted. TimeoutError if they do not all arrive."""
    spawn = multiprocessing.get_context("spawn")
    receiver, teller = spawn.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="hops-") as made:
        folder = Path(made)
        parts = [
            spawn.Process(target=relay, args=(folder,)),
            spawn.Process(target=sink, args=(folder, items, teller.send)),
            spawn.Process(target=source, args=(folder, items, rate)),
        ]
        for part in parts:
            part.start()
        try:
            if not receiver.poll(items / rate + WAIT_S):
                raise TimeoutError(f"not all of {items} numbers came within {items / rate + WAIT_S:.0f} s")
            return sorted(receiver.recv())
        finally:
            for part in parts:
                part.kill()
                part.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hops", description=(__doc__ or "").partition("?")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    medians, rare = [], []
    resource_tracker.ensure_running()  # of spawned processes: what is there before a watch is not ended by it
    for number in range(rounds):
        with watched() as seen:
            late_s = measure()
        medians.append(late_s[len(late_s) // 2] * 1000)
        rare.append(late_s[len(late_s) * 99 // 100] * 1000)
        others = "unknown" if seen.others is None else f"{seen.others:.2f}"
        print(f"{number + 1}: p50 {medians[-1]:.2f} ms, p99 {rare[-1]:.2f} ms; others took {others} cores", flush=True)
    print(f"median of {rounds}: p50 {statistics.median(medians):.2f} ms, p99 {statistics.median(rare):.2f} ms")


if __name__ == "__main__":
    main()
