"""Durable nodes over every engine: state, outputs and sinks change exactly once per item, whatever dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consecution import Map, Pipeline, Reduce
from consecution.engines.process import ProcessRunning
from consecution.routing import replica_of_slot, slot_of
from consecution.runtime import state_table
from consecution.runtime.journal_check import check_state_dir
from tests.engines.durable_nodes import (
    Balance,
    Beat,
    DiesOnce,
    Fickle,
    OnceFile,
    Till,
    Watch,
    lines_of,
    payments,
    slowly,
    totals,
)

MODES = ("inline", "thread", "process")
WORKERS = {"one worker": 1, "two workers": 2}
"""Further engines: processes that share the tasks."""
LEVELS = ("none", "confirm", "track", "robust")
DEADLINE_S = 30.0


@pytest.fixture(params=[*MODES, *WORKERS])
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


def options(mode: str, folder: Path, **given: Any) -> Any:
    engine = {"mode": "process", "workers": WORKERS[mode]} if mode in WORKERS else {"mode": mode}
    kept = {"state_dir": folder / "state"} if given.get("robustness", "robust") == "robust" else {}
    return {**engine, "sync": "process", "retry_delay_s": 0.01, **kept, **given}


def pass_on(item: Any) -> Any:
    return item


def at_the_end(lines: list[Any]) -> dict[str, int]:
    return {name.removesuffix(" at the end"): total for name, total in lines if name.endswith(" at the end")}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came about"
        time.sleep(0.005)


def test_an_account_that_a_plain_node_holds_twice_is_one_after_a_kill(tmp_path: Path) -> None:
    token, out = tmp_path / "token", tmp_path / "out"
    token.touch()
    items = payments(1000)
    expected: dict[str, int] = {}
    for start in range(0, 1000, 100):
        account, _ = items[start]
        expected[account] = expected.get(account, 0) + sum(amount for _, amount in items[start : start + 100])

    pipeline = Pipeline(Till("till", token, at=items[555]) | OnceFile("out", out))
    report = pipeline.run(items, **options("process", tmp_path, batch_size=10, max_pending=4))

    assert at_the_end(lines_of(out)) == expected
    assert (report.restarts, token.exists()) == (1, False)


@pytest.mark.parametrize("level", LEVELS)
def test_keyed_totals_are_right_at_every_level(mode: str, level: str, tmp_path: Path) -> None:
    items = payments(700)
    pipeline = Pipeline(
        Map(pass_on, "in") | Balance("balance") * 3 | Watch("watch") | OnceFile("out", tmp_path / "out")
    )

    report = pipeline.run(items, **options(mode, tmp_path, robustness=level))

    lines = lines_of(tmp_path / "out")
    assert at_the_end(lines) == totals(items)
    assert len(lines) == 700 + 7 + 1
    assert ("seen", 707) in lines
    assert (report.emitted, report.completed, report.open, report.exit_code) == (700, 700, 0, 0)


def test_reduce_folds_each_key(mode: str, tmp_path: Path) -> None:
    reduced = Reduce(lambda item: item[0], 0, lambda total, item: total + item[1], "sum")

    Pipeline(Map(pass_on, "in") | reduced * 2 | OnceFile("out", tmp_path / "out")).run(
        payments(100), **options(mode, tmp_path)
    )

    assert dict(lines_of(tmp_path / "out")) == totals(payments(100))


def test_an_item_that_raises_leaves_state_and_outputs_as_before_it(mode: str, tmp_path: Path) -> None:
    items = [("a", 1), ("a", -5), ("b", 2), ("a", 3), ("b", -1)]

    report = Pipeline(Map(pass_on, "in") | Balance("balance") | OnceFile("out", tmp_path / "out")).run(
        items, **options(mode, tmp_path, retries=2)
    )

    lines, expected = (
        lines_of(tmp_path / "out"),
        [("a", 1), ("b", 2), ("a", 4), ("a at the end", 4), ("b at the end", 2)],
    )
    in_order = mode != "two workers"  # each of which has its keys
    assert (lines if in_order else sorted(lines)) == (expected if in_order else sorted(expected))
    failed = sorted((failure.node, failure.item, failure.attempts) for failure in report.failures)
    assert failed == [("balance", ("a", -5), 3), ("balance", ("b", -1), 3)]
    assert (report.completed, report.failed, report.exit_code) == (5, 2, 1)


def test_an_item_whose_key_is_anothers_begins_no_second_state(mode: str, tmp_path: Path) -> None:
    moved = [name for name in NAMES if replica_of(name) != replica_of(f"{name} ")]
    items = [(name + blank, 1) for name in NAMES for blank in ("", " ")]

    report = Pipeline(Map(pass_on, "in") | Renamed("balance") * 2 | OnceFile("out", tmp_path / "out")).run(
        items, **options(mode, tmp_path, retries=1)
    )

    assert moved
    assert sorted(failure.item for failure in report.failures) == [(f"{name} ", 1) for name in moved]
    assert all(failure.error.startswith("MisplacedKeyError: the key ") for failure in report.failures)
    assert at_the_end(lines_of(tmp_path / "out")) == {name: 1 + (name not in moved) for name in NAMES}


NAMES = "abcdefgh"


def replica_of(key: str) -> int:
    return replica_of_slot(slot_of(key), 2)


class Renamed(Balance):
    """Its keys are others than its senders think."""

    def begin(self) -> None:
        self.renamed = True

    def key(self, item: tuple[str, int]) -> str:
        return item[0].strip() if getattr(self, "renamed", False) else item[0]


def test_more_failed_items_than_the_window_holds_are_tried_again(mode: str, tmp_path: Path) -> None:
    items = [("a", -number) for number in range(1, 301)]

    report = Pipeline(Map(pass_on, "in") | Balance("balance") | OnceFile("out", tmp_path / "out")).run(
        items, **options(mode, tmp_path, retries=1, max_pending=8)
    )

    assert (report.completed, report.failed, report.open) == (300, 300, 0)
    assert {failure.attempts for failure in report.failures} == {2}


@pytest.mark.parametrize("cache_bytes", [1, 10**9], ids=["nothing stays in memory", "everything does"])
def test_states_that_were_merged_or_left_memory_are_found_again(
    cache_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_table, "LOG_LIMIT_KEYS", 5)
    items = [(f"account {number % 23}", number if number % 50 else -1) for number in range(1000)]

    report = Pipeline(Map(pass_on, "in") | Balance("balance") | OnceFile("out", tmp_path / "out")).run(
        items, **options("inline", tmp_path, batch_size=20, retries=0, cache_bytes=cache_bytes)
    )

    assert report.failed == 20
    assert at_the_end(lines_of(tmp_path / "out")) == totals([item for item in items if item[1] >= 0])


def test_state_goes_on_where_a_stop_left_it(mode: str, tmp_path: Path) -> None:
    items, gate = payments(400), tmp_path / "gate"

    def build() -> Pipeline:
        return Pipeline(Map(pass_on, "in") | Balance("balance") * 2 | OnceFile("out", tmp_path / "out"))

    running = build().start(lambda: slowly(items, gate, 200), **options(mode, tmp_path, batch_size=10))
    if mode == "inline":
        gate.touch()
        running.join(0.01)
    else:
        wait_until(lambda: running.status().completed >= 50)
    first = running.stop()
    gate.touch()
    second = build().run(lambda: slowly(items, gate, 200), **options(mode, tmp_path))

    assert first.open == 0
    assert at_the_end(lines_of(tmp_path / "out")) == totals(items)
    assert second.emitted == 400
    assert check_state_dir(tmp_path / "state").problems == ()


def test_on_timer_pushes_what_was_gathered_so_far(mode: str, tmp_path: Path) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    pipeline = Pipeline(Map(pass_on, "in") | Beat("beat").every(0.02) | OnceFile("out", out))

    running = pipeline.start(lambda: slowly([1, 2, 3, 4], gate, 3), **options(mode, tmp_path))
    if mode == "inline":
        gate.touch()
    else:
        wait_until(lambda: 3 in lines_of(out))
        gate.touch()
    report = running.wait(DEADLINE_S)

    assert report.exit_code == 0
    assert lines_of(out) == sorted(set(lines_of(out)))


@pytest.mark.parametrize("workers", ["per-task", 1, 2])
def test_all_durable_tasks_take_in_the_same_execution_of_a_fickle_node(workers: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    items = payments(3000)
    left, right = OnceFile("left", tmp_path / "left"), OnceFile("right", tmp_path / "right")
    dies = DiesOnce("dies", token, items[1500])

    report = Pipeline(dies | Fickle("fickle") * 2 | [left, right]).run(
        items, **options("process", tmp_path, batch_size=50, workers=workers)
    )

    assert report.restarts >= 1
    assert sorted(lines_of(tmp_path / "left")) == sorted(lines_of(tmp_path / "right"))
    assert sorted((account, amount) for account, amount, _ in lines_of(tmp_path / "left")) == sorted(items)


@pytest.mark.parametrize("workers", ["per-task", 1, 2, 3])
def test_totals_are_right_whatever_is_killed(workers: Any, tmp_path: Path) -> None:
    items, gates = payments(4000), [tmp_path / f"gate {number}" for number in range(3)]

    def source() -> Any:
        for number, item in enumerate(items):
            if number and number % 1000 == 0:
                wait_until(gates[number // 1000 - 1].exists)
            yield item

    out = tmp_path / "out"
    pipeline = Pipeline(Map(pass_on, "in") | Balance("balance") * 3 | Watch("watch") | OnceFile("out", out))
    running = pipeline.start(source, **options("process", tmp_path, batch_size=100, workers=workers))
    assert isinstance(running, ProcessRunning)
    for number, victims in enumerate(
        [["balance.0", "out.0"], ["watch.0"], ["balance.1", "balance.2", "in.0", "watch.0"]]
    ):
        wait_until(lambda number=number: running.status().emitted >= 1000 * (number + 1))
        pids = running.pids()
        for pid in {pids[victim] for victim in victims}:
            os.kill(pid, signal.SIGKILL)
        gates[number].touch()
    report = running.wait(DEADLINE_S)

    assert at_the_end(lines_of(out)) == totals(items)
    assert len(lines_of(out)) == 4000 + 7 + 1
    deaths = 7 if workers == "per-task" else 3
    assert (report.restarts >= deaths, report.open, report.exit_code) == (True, 0, 0)
    assert check_state_dir(tmp_path / "state").problems == ()
