"""A source that is read in several shares: by several workers at once, each share in its own order, each item once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from consecution import Count, IterableSource, Map, Producer
from consecution.errors import StateDirError
from tests.engines.durable_nodes import OnceFile, lines_of
from tests.engines.nodes import Collect, collected
from tests.engines.test_contract import Run, every_engine, mode, run, wait_for

__all__ = ["mode", "run"]

COUNT = 3000


def keep(item: Any) -> Any:
    return item


class Dawdles:
    """Passes items on, slowly as long as a file is not there."""

    def __init__(self, hurry: Path) -> None:
        self.hurry = hurry

    def __call__(self, item: int) -> int:
        if not self.hurry.exists():
            time.sleep(0.001)
        return item


@every_engine
def test_each_item_comes_once_and_each_share_keeps_its_order(run: Run) -> None:
    report = run((Producer(range(COUNT), name="numbers") * 3 | Map(keep, "keep")) | OnceFile("lines", run.out))

    found = lines_of(run.out)
    for share in range(3):
        assert [item for item in found if item % 3 == share] == list(range(share, COUNT, 3))
    assert (report.emitted, report.completed) == (COUNT, COUNT)
    assert [(s.source, s.emitted) for s in report.sources] == [("numbers", COUNT)]
    assert report.nodes[0].replicas == 3


def test_a_reader_that_is_killed_goes_on_in_its_share(tmp_path: Path) -> None:
    run, gate = Run("process", tmp_path), tmp_path / "gate"
    run.workers = 2
    chain = Producer(list(range(COUNT)), name="numbers") * 2 | Map(Dawdles(gate), "dawdle")

    with run.start(chain | OnceFile("lines", run.out), batch_size=50) as running:
        wait_for(running, lambda: len(lines_of(run.out)) > 0)
        pids = running.pids()  # type: ignore[attr-defined]
        assert pids["numbers.0"] != pids["numbers.1"]
        os.kill(pids["numbers.1"], signal.SIGKILL)
        gate.touch()

    found = lines_of(run.out)
    for share in range(2):
        assert [item for item in found if item % 2 == share] == list(range(share, COUNT, 2))


def stop_half_way(run: Run, chain: Any, gate: Path) -> None:
    running = run.start(chain, batch_size=20, max_pending=4)
    wait_for(running, lambda: running.status().completed > 0)
    running.request_stop()
    gate.touch()
    report = running.wait()
    assert report.stopped
    assert 0 < report.emitted < COUNT
    gate.unlink()


def test_shares_stay_as_they_are_whatever_workers_is_and_another_number_is_refused(tmp_path: Path) -> None:
    run, gate = Run("process", tmp_path), tmp_path / "gate"

    def chain(shares: int | None) -> Any:
        numbers = Producer(Costly(range(COUNT)), name="numbers")
        source = numbers if shares is None else numbers * shares
        return source | Map(Dawdles(gate), "dawdle") | Count(name="count") | Collect("counts", run.out)

    run.workers = 2
    stop_half_way(run, chain(None), gate)
    gate.touch()
    with pytest.raises(
        StateDirError, match=r"'numbers\.0', one of 2 shares of the source 'numbers', was read \("
    ) as no:
        run.start(chain(3))
    assert "sources their old shares (Producer(...) * n)" in str(no.value)
    run.workers = 1
    report = run(chain(None))

    assert report.nodes[0].replicas == 2
    assert report.emitted == COUNT
    assert sorted(collected(run.out)) == [(item, 1) for item in range(COUNT)]


def test_what_cannot_be_sent_to_a_worker_is_read_here_in_shares(tmp_path: Path) -> None:
    run = Run("process", tmp_path)
    run.workers = 2
    items = [Unsendable(number) for number in range(20)]

    report = run(Producer(items, name="items") * 2 | Map(keep, "keep") | OnceFile("lines", run.out), retries=0)

    assert report.emitted == 20


class Costly(IterableSource):
    worth_splitting = True


class Unsendable:
    """Can be pickled as an item, but not with what reads it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        raise TypeError("stays here")
