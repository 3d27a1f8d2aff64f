from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import multiprocess
import pytest

from consecution.errors import DamagedStoreError, StateDirError, UsageError
from consecution.runtime import snapshot
from consecution.runtime import state as state_module
from consecution.runtime.journal import Journal, seal
from consecution.runtime.snapshot import Moved, StoreView, freeze, take_snapshot
from tests.runtime.records import plan

DEADLINE_S = 60.0
STORES = 4
ROUNDS = 50
NEVER_S = float("inf")


def write_on_and_on(folders: list[Path], ready: Any, stop: Any) -> None:
    """Number n into one store after the other, commit by commit, without a pause."""
    with ExitStack() as stack:
        envs = [stack.enter_context(lmdb.open(str(folder), max_dbs=1, sync=False)) for folder in folders]
        handles = [env.open_db(b"t") for env in envs]
        number = 0
        while not stop.is_set():
            for env, handle in zip(envs, handles, strict=True):
                with env.begin(write=True) as txn:
                    txn.put(b"n", seal(b"n", str(number).encode()), db=handle)
            ready.set()
            number += 1


@contextmanager
def written_to(folders: list[Path]) -> Iterator[None]:
    context = multiprocess.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    writer = context.Process(target=write_on_and_on, args=(folders, ready, stop))
    writer.start()
    try:
        assert ready.wait(DEADLINE_S)
        yield
    finally:
        stop.set()
        writer.join(DEADLINE_S)
        assert writer.exitcode == 0


class Hesitant(StoreView):
    """After its begin it waits, once, until there has been another commit."""

    hesitates = False

    def begin(self) -> None:
        super().begin()
        deadline_s = time.monotonic() + DEADLINE_S
        while self.hesitates and self.is_current():
            assert time.monotonic() < deadline_s
        self.hesitates = False


@contextmanager
def views_of(folders: list[Path]) -> Iterator[list[Hesitant]]:
    with ExitStack() as stack:
        views = []
        for folder in folders:
            env = stack.enter_context(lmdb.open(str(folder), readonly=True, max_dbs=1))
            views.append(stack.enter_context(closing(Hesitant(folder.name, folder, env))))
        yield views


def numbers_in(views: list[Hesitant]) -> list[int]:
    return [int(view.get("t", b"n") or b"-1") for view in views]


def nothing_beside() -> None: ...


def test_stores_that_change_all_the_time_are_seen_as_of_one_instant(tmp_path: Path) -> None:
    """At any instant the first ones have number n, and the others n - 1; read in turn they would differ by more."""
    folders = [tmp_path / f"store-{n}" for n in range(STORES)]
    seen: set[int] = set()
    deadline_s = time.monotonic() + DEADLINE_S
    with written_to(folders), views_of(folders) as views:
        while len(seen) < ROUNDS:
            assert time.monotonic() < deadline_s
            views[0].hesitates = len(seen) % 10 == 0
            freeze(views, nothing_beside, NEVER_S)
            numbers = numbers_in(views)
            seen.add(numbers[0])
            assert numbers == sorted(numbers, reverse=True)
            assert numbers[0] - numbers[-1] in (0, 1), numbers
            assert numbers_in(views) == numbers


def test_what_moves_beside_is_looked_at_again_and_not_for_ever(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path / "a"), max_dbs=1).close()
    moves = [Moved(), Moved()]

    def move() -> None:
        if moves:
            raise moves.pop()

    with views_of([tmp_path / "a"]) as views:
        freeze(views, move, NEVER_S)
        assert not moves
        moves = [Moved()] * 2
        with pytest.raises(Moved):
            freeze(views, move, time.monotonic() - 1)


def test_a_folder_that_is_no_state_directory_or_has_not_begun_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"is not a state directory: it has no manifest\.json; give the folder"),
        take_snapshot(tmp_path),
    ):
        pass

    state_module._write_manifest(tmp_path, state_module._make_manifest(plan()))
    with (
        pytest.raises(UsageError, match=r"holds nothing yet: no run has begun in it; run its pipeline first"),
        take_snapshot(tmp_path),
    ):
        pass


def test_a_store_that_is_open_here_is_not_looked_at_here(tmp_path: Path) -> None:
    with (
        closing(Journal(tmp_path / "a", origin="a", epoch="e")),
        pytest.raises(StateDirError, match="is open in this process"),
        snapshot._opened("a", tmp_path / "a"),
    ):
        pass


def test_a_record_that_is_damaged_is_named(tmp_path: Path) -> None:
    Journal(tmp_path / "a", origin="a", epoch="e").close()
    with lmdb.open(str(tmp_path / "a"), max_dbs=4) as env, env.begin(write=True) as txn:
        txn.put(b"head", b"\0\0\0\0oh", db=env.open_db(b"meta", txn=txn, create=False))

    with snapshot._opened("a", tmp_path / "a") as view:
        view.begin()
        with pytest.raises(DamagedStoreError, match="record meta/head fails its checksum"):
            view.get("meta", b"head")
        with pytest.raises(DamagedStoreError):
            list(view.records("meta"))


@pytest.mark.parametrize(("table", "key", "name"), [("batches", 5, "batches/5"), ("failures", 258, "failures/258")])
def test_a_damaged_record_has_the_number_that_the_check_gives_it(
    tmp_path: Path, table: str, key: int, name: str
) -> None:
    Journal(tmp_path / "a", origin="a", epoch="e").close()
    with lmdb.open(str(tmp_path / "a"), max_dbs=4) as env, env.begin(write=True) as txn:
        txn.put(key.to_bytes(8, "big"), b"\0\0\0\0oh", db=env.open_db(table.encode(), txn=txn, create=False))

    with snapshot._opened("a", tmp_path / "a") as view:
        view.begin()
        with pytest.raises(DamagedStoreError, match=f"record {name} fails its checksum"):
            view.get(table, key.to_bytes(8, "big"))
