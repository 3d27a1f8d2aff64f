"""Requests are answered once, and truly: what was taken is in the journal, what was refused is not there at all."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from consecution.report import Failure
from consecution.source import Note
from consecution.sources.taken_keys import TakenKeys, digest
from consecution.sources.waiting_room import Answer, Request, WaitingRoom

KEY, BODY = digest(b"key"), digest(b"body")


class Room:
    """A waiting room, the answers that were heard, and a clock that stands still."""

    def __init__(self, *, most_items: int = 100, most_bytes: int = 1000, keys: TakenKeys | None = None) -> None:
        self.now_s = 1000.0
        self.heard: dict[str, list[Answer]] = {}
        self.notes: list[tuple[int, bytes]] = []
        self.keys = keys or TakenKeys(100, 1000.0)
        self.room = WaitingRoom(
            self.keys, WaitingRoom.hand_out, lambda: self.now_s, most_items=most_items, most_bytes=most_bytes
        )
        self.seq = 0

    def send(self, name: str, items: list[Any], **options: Any) -> Answer | None:
        heard = self.heard.setdefault(name, [])
        answer = self.room.enter(Request(items, heard.append, **options))
        if answer is not None:
            heard.append(answer)
        return answer

    def answer(self, name: str) -> Answer | None:
        (answer,) = self.heard[name] or [None]
        return answer

    def status(self, name: str) -> int | None:
        answer = self.answer(name)
        return None if answer is None else answer.status

    def batch(self, most: int = 100) -> list[Any]:
        """Read, and make a batch of it."""
        items, _ = self.room.take(most)
        if items:
            self.room.born(self.seq, len(items))
            note = self.room.note(self.seq)
            if note is not None:
                self.keep(note)
            self.seq += 1
        return items

    def keep(self, note: Note) -> None:
        kept = [(seq, body) for seq, body in self.notes if seq >= note.needed_since]
        self.notes = [*kept, (self.seq, note.body)]

    @property
    def rings(self) -> bool:
        return bool(select.select([self.room.fileno()], [], [], 0)[0])


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room()
    yield made
    made.room.close()


# -- taken -----------------------------------------------------------------------------------------


def test_a_request_is_answered_when_all_of_its_items_are_in_the_journal(room: Room) -> None:
    room.send("one", [1, 2, 3])
    assert (room.batch(2), room.batch(2)) == ([1, 2], [3])

    room.room.journalled(0)
    assert room.answer("one") is None
    room.room.journalled(1)

    assert room.answer("one") == Answer(202, {"taken": 3})


def test_requests_share_a_batch_and_each_hears_its_own(room: Room) -> None:
    room.send("one", [1, 2])
    room.send("two", [3])
    assert room.batch() == [1, 2, 3]

    room.room.journalled(0)

    assert room.answer("one") == Answer(202, {"taken": 2})
    assert room.answer("two") == Answer(202, {"taken": 1})


def test_nothing_is_taken_at_once(room: Room) -> None:
    assert room.send("one", []) == Answer(202, {"taken": 0})
    assert room.send("two", [], waits=True) == Answer(200, {"taken": 0})
    assert not room.rings


def test_the_bell_rings_as_long_as_something_waits(room: Room) -> None:
    assert not room.rings
    room.send("one", [1, 2])
    room.send("two", [3])
    room.batch(2)
    assert room.rings

    room.batch(2)

    assert not room.rings


# -- complete --------------------------------------------------------------------------------------


def test_one_that_waits_is_in_batches_of_its_own(room: Room) -> None:
    for name, items in [("a", [1]), ("b", [2]), ("c", [3, 4, 5]), ("d", [6])]:
        room.send(name, items, waits=name == "c")

    found = []
    for _ in range(4):
        items, cut = room.room.take(2)
        room.room.born(len(found), len(items))
        found.append((items, cut))

    assert found == [([1, 2], False), ([3, 4], False), ([5], True), ([6], False)]


def test_batches_end_before_one_that_waits_even_where_reads_are_put_together(room: Room) -> None:
    room.send("a", [1])
    assert room.room.take(10) == ([1], False)
    room.send("b", [2], waits=True)

    assert room.room.take(10) == ([], True)

    room.room.born(0, 1)
    assert room.room.take(10) == ([2], True)


def test_one_that_waits_hears_when_all_of_its_batches_are_settled(room: Room) -> None:
    room.send("one", [1, 2], waits=True)
    room.batch(1)
    room.batch(1)
    room.room.journalled(0)
    room.room.settled(0, 0, confirmed=True)
    room.room.journalled(1)
    assert room.answer("one") is None

    room.room.settled(1, 0, confirmed=True)

    assert room.answer("one") == Answer(200, {"taken": 2, "complete": True})


def test_one_that_waits_hears_what_has_failed(room: Room) -> None:
    room.send("one", ["x"], waits=True)
    room.batch()
    room.room.journalled(0)
    room.room.failed(0, [Failure("parse", "'x'", "ValueError: no", "", 4)])
    room.room.settled(0, 1, confirmed=True)

    failures = [{"node": "parse", "item": "'x'", "error": "ValueError: no", "attempts": 4}]
    assert room.answer("one") == Answer(500, {"taken": 1, "complete": True, "failed": 1, "failures": failures})


def test_one_that_waits_hears_that_a_worker_died_without_a_journal(room: Room) -> None:
    room.send("one", ["x"], waits=True)
    room.batch()
    room.room.journalled(0)
    room.room.settled(0, 0, confirmed=False)

    answer = room.answer("one")
    assert answer is not None
    assert (answer.status, answer.says["complete"]) == (500, False)


def test_one_that_has_waited_too_long_hears_that_it_is_taken(room: Room) -> None:
    room.send("one", ["x"], waits=True)
    room.batch()
    room.room.journalled(0)
    room.now_s += 61.0

    room.room.expire(10.0, 60.0)
    room.room.settled(0, 0, confirmed=True)

    assert room.answer("one") == Answer(202, {"taken": 1, "complete": False})


# -- refused ---------------------------------------------------------------------------------------


def test_there_is_room_for_so_many_items_and_bytes_but_always_for_one_alone() -> None:
    room = Room(most_items=3, most_bytes=100)

    assert room.send("large", [1, 2, 3, 4], size_bytes=500) is None
    answer = room.send("next", [5])
    assert answer is not None
    assert (answer.status, answer.retry_after_s) == (429, 1)
    room.batch()
    room.send("first", [1], size_bytes=60)
    assert room.send("second", [1], size_bytes=60) is not None
    assert room.send("third", [1], size_bytes=40) is None
    room.room.close()


def test_what_nobody_takes_is_given_back_and_it_shows(room: Room) -> None:
    room.send("one", [1])
    room.send("two", [2])
    room.now_s += 5.0
    room.send("late", [3])
    room.now_s += 6.0

    room.room.expire(10.0, 60.0)

    answer = room.answer("one")
    assert answer is not None
    assert (answer.status, answer.says["taken"], answer.retry_after_s) == (503, 0, 5)
    assert room.status("two") == 503
    assert room.answer("late") is None
    assert room.room.is_stalled
    assert room.batch() == [3]
    assert not room.room.is_stalled


def test_one_that_is_taken_in_part_hears_how_much_when_that_is_journalled(room: Room) -> None:
    room.send("one", [1, 2, 3], waits=True, size_bytes=30)
    assert room.batch(2) == [1, 2]
    room.now_s += 11.0

    room.room.expire(10.0, 60.0)
    assert room.answer("one") is None
    room.room.journalled(0)

    answer = room.answer("one")
    assert answer is not None
    assert (answer.status, answer.says["taken"]) == (503, 2)
    assert "2 of its 3 items were taken" in answer.says["error"]
    assert room.batch() == []
    assert (room.room.waiting_items, room.room.waiting_bytes) == (0, 0)
    room.room.settled(0, 0, confirmed=True)


def test_at_the_end_everybody_is_answered(room: Room) -> None:
    room.send("complete soon", [1], waits=True)
    room.batch()
    room.room.journalled(0)
    room.send("on its way", [2])
    room.batch()
    room.send("outside", [3])

    room.room.close()
    room.room.close()

    assert room.answer("complete soon") == Answer(202, {"taken": 1, "complete": False})
    on_its_way, outside = room.answer("on its way"), room.answer("outside")
    assert on_its_way is not None
    assert (on_its_way.status, "taken" in on_its_way.says) == (503, False)
    assert "not known how much of this was taken" in on_its_way.says["error"]
    assert outside is not None
    assert (outside.status, outside.says["taken"]) == (503, 0)
    assert room.send("too late", [4]) is not None
    assert room.status("too late") == 503


# -- keys ------------------------------------------------------------------------------------------


def test_a_repeat_is_answered_and_not_taken(room: Room) -> None:
    room.send("one", [1, 2], key=b"k", body=b"12")
    room.batch(1)
    room.send("meanwhile", [1, 2], key=b"k", body=b"12")
    assert room.batch() == [2]
    room.room.journalled(0)
    room.room.journalled(1)
    room.send("afterwards", [1, 2], key=b"k", body=b"12")

    assert room.answer("one") == room.answer("meanwhile") == Answer(202, {"taken": 2})
    assert room.answer("afterwards") == Answer(202, {"taken": 2, "repeated": True})
    assert room.batch() == []


def test_another_body_with_the_same_key_is_refused(room: Room) -> None:
    room.send("one", [1], key=b"k", body=b"1")
    room.send("meanwhile", [2], key=b"k", body=b"2")
    room.batch()
    room.room.journalled(0)
    room.send("afterwards", [2], key=b"k", body=b"2")

    assert [room.status(name) for name in ("one", "meanwhile", "afterwards")] == [202, 422, 422]


def test_a_repeat_of_one_that_had_waited_hears_the_same(room: Room) -> None:
    room.send("one", [1], waits=True, key=b"k", body=b"1")
    room.batch()
    room.room.journalled(0)
    room.room.settled(0, 1, confirmed=True)
    room.send("again", [1], waits=True, key=b"k", body=b"1")

    first, again = room.answer("one"), room.answer("again")
    assert first is not None
    assert again == first._replace(says={**first.says, "repeated": True})


@pytest.mark.parametrize("cut", range(4))
def test_a_repeat_in_another_life_takes_what_is_missing(cut: int) -> None:
    """The process has died after the commit of the batch with the first ``cut`` items."""
    first = Room()
    first.send("one", [1, 2, 3], key=KEY, body=BODY)
    taken = first.batch(cut) if cut else []
    first.room.close()

    keys = TakenKeys(100, 1000.0)
    keys.recall(first.notes)
    second = Room(keys=keys)
    second.seq = 7
    second.send("again", [1, 2, 3], key=KEY, body=BODY)
    taken += second.batch(2)
    taken += second.batch(2)
    for seq in range(7, second.seq):
        second.room.journalled(seq)

    assert taken == [1, 2, 3]
    answer = second.answer("again")
    assert answer is not None
    assert (answer.status, answer.says["taken"]) == (202, 3)
    assert second.send("third", [1, 2, 3], key=KEY, body=BODY) is not None
    second.room.close()


def test_a_refused_rest_is_taken_by_a_repeat(room: Room) -> None:
    room.send("one", [1, 2, 3], key=b"k", body=b"123")
    assert room.batch(2) == [1, 2]
    room.room.journalled(0)
    room.now_s += 11.0
    room.room.expire(10.0, 60.0)
    assert room.status("one") == 503

    room.send("again", [1, 2, 3], key=b"k", body=b"123")

    assert room.batch() == [3]
    room.room.journalled(1)
    assert room.answer("again") == Answer(202, {"taken": 3})


def test_keys_are_forgotten_when_they_are_too_old_or_too_many() -> None:
    keys = TakenKeys(3, 100.0)
    notes = [keys.take(seq, 1000.0 + seq, [(b"%16d" % seq, b"b" * 16, 1, True)]) for seq in range(5)]

    assert [keys.find(b"%16d" % seq) is not None for seq in range(5)] == [False, False, True, True, True]
    assert [note.needed_since for note in notes] == [0, 0, 0, 1, 2]
    note = keys.take(9, 1103.0, [(b"%16d" % 9, b"b" * 16, 1, True)])
    assert note.needed_since == 3
    assert len(keys) == 3


def test_a_key_that_was_noted_again_is_not_forgotten_with_its_first_note() -> None:
    keys = TakenKeys(10, 100.0)
    keys.take(1, 1000.0, [(KEY, BODY, 1, False)])
    keys.take(2, 1090.0, [(KEY, BODY, 3, True)])
    keys.take(3, 1150.0, [(digest(b"other"), BODY, 1, True)])

    found = keys.find(KEY)
    assert found is not None
    assert (found.count, found.complete) == (3, True)


# -- any history -------------------------------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """Senders that repeat until they are told that it was taken; crashes lose whatever was not committed."""

    def __init__(self) -> None:
        super().__init__()
        self.names = 0
        self.committed: list[Any] = []
        self.kept_notes: list[tuple[int, bytes]] = []
        self.bodies: dict[str, list[Any]] = {}
        self.done: set[str] = set()
        self._live()

    def _live(self) -> None:
        keys = TakenKeys(1000, 1e9)
        keys.recall(self.kept_notes)
        self.room = Room(most_items=8, keys=keys)
        self.room.notes = list(self.kept_notes)
        self.room.seq = 1000 * (1 + max((seq for seq, _ in self.kept_notes), default=0) // 1000)
        self.batches: list[tuple[int, list[Any]]] = []

    @rule(count=st.integers(1, 5), waits=st.booleans())
    def send(self, count: int, waits: bool) -> None:
        self.names += 1
        name = f"request {self.names}"
        self.bodies[name] = [(name, n) for n in range(count)]
        self._send(name, waits)

    @rule(waits=st.booleans(), which=st.randoms(use_true_random=False))
    def repeat(self, waits: bool, which: Any) -> None:
        if self.bodies:
            self._send(which.choice(sorted(self.bodies)), waits)

    def _send(self, name: str, waits: bool) -> None:
        heard = self.room.heard.setdefault(name, [])
        body = digest(name.encode())
        answer = self.room.room.enter(
            Request(list(self.bodies[name]), heard.append, waits=waits, key=body, body=body, size_bytes=1)
        )
        heard += [answer] if answer is not None else []

    @rule(most=st.integers(1, 6))
    def read(self, most: int) -> None:
        seq = self.room.seq
        items = self.room.batch(most)
        if items:
            self.batches.append((seq, items))

    @rule()
    def commit(self) -> None:
        for seq, items in self.batches:
            self.committed += items
            self.room.room.journalled(seq)
        settled, self.batches = self.batches, []
        self.kept_notes = list(self.room.notes)
        for seq, _ in settled:
            self.room.room.settled(seq, 0, confirmed=True)

    @rule()
    def wait(self) -> None:
        self.room.now_s += 11.0
        self.room.room.expire(10.0, 60.0)

    @rule()
    def crash(self) -> None:
        self.room.room.close()
        self._live()

    @invariant()
    def what_was_taken_is_there_once(self) -> None:
        for name, heard in self.room.heard.items():
            if any(answer.status in (200, 202) for answer in heard):
                self.done.add(name)
        assert len(self.committed) == len(set(self.committed))
        missing = [item for name in self.done for item in self.bodies[name] if item not in self.committed]
        assert missing == []

    def teardown(self) -> None:
        self.room.room.close()


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
