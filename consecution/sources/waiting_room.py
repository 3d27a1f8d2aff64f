"""Requests that wait for their items to be taken, journalled, or completely processed; and what each is answered.

Two threads meet here. The one that serves lets requests in, and hands out the answers; the one that reads takes their
items, and tells what becomes of the batches. Neither waits for the other.

The rules it keeps:

1. A request is answered once. No answer says that it was taken before all of its items are in the journal.
2. A request that waits to be complete is in batches of its own: no failure of another's item is told to it.
3. Where there is no room, or nobody comes to take anything, a request is refused: nothing of it is taken, or the answer
   says how much, and a repeat with the same key takes the rest.
4. A request with a key that is on its way is not let in a second time: who repeats it hears the same answer.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from consecution.report import Failure
from consecution.source import Note
from consecution.sources.taken_keys import Taken, TakenKeys

FULL_RETRY_S = 1
STALLED_RETRY_S = 5


class Answer(NamedTuple):
    """What a request is answered with: an HTTP status, what the body says, and when to try again."""

    status: int
    says: dict[str, Any]
    retry_after_s: int | None = None


class Request:
    """Items that came together. ``reply`` is called with the answer, by the thread that serves.

    ``key`` and ``body`` are digests, where the sender has given a key; ``waits`` asks for more than that it is taken.
    """

    def __init__(
        self,
        items: list[Any],
        reply: Callable[[Answer], None],
        *,
        size_bytes: int = 0,
        waits: bool = False,
        key: bytes | None = None,
        body: bytes = b"",
    ) -> None:
        self.items = items
        self.replies = [reply]
        self.size_bytes = size_bytes
        self.waits = waits
        self.key = key
        self.body = body
        self.entered_s = 0.0
        self.total = len(items)
        self.before = 0
        """So many of its items were taken when it came before."""
        self.read = 0
        self.born = 0
        self.kept = 0
        self.withdrawn = False
        self.open_batches: set[int] = set()
        self.failed = 0
        self.failures: list[Failure] = []
        self.confirmed = True

    @property
    def all_read(self) -> bool:
        """Nothing of it waits to be taken."""
        return self.withdrawn or self.before + self.read == self.total

    @property
    def all_kept(self) -> bool:
        """All of it that was taken, and will be, is in the journal."""
        return self.all_read and self.kept == self.read

    @property
    def taken(self) -> int:
        """So many of its items were taken, in this life and before."""
        return self.before + self.read


class WaitingRoom:
    """Room for ``most_items`` items, and ``most_bytes`` of bodies, that nobody has taken yet.

    ``deliver`` gets all answers that a batch brings, in the thread that reads; each list is to go to `hand_out`, in the
    thread that serves. ``clock`` gives seconds since 1970.
    """

    def __init__(
        self,
        keys: TakenKeys,
        deliver: Callable[[list[tuple[Request, Answer]]], None],
        clock: Callable[[], float],
        *,
        most_items: int,
        most_bytes: int,
    ) -> None:
        self._keys = keys
        self._deliver = deliver
        self._clock = clock
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._queue: deque[Request] = deque()
        self._open: dict[Request, None] = {}
        self._by_key: dict[bytes, Request] = {}
        self._unborn: deque[tuple[Request, int]] = deque()
        self._batches: dict[int, list[tuple[Request, int]]] = {}
        self._stalled = False
        self._closed = False
        self._readable, self._bell = os.pipe()
        self._rung = False
        self.waiting_items = 0
        self.waiting_bytes = 0

    # -- the thread that serves ------------------------------------------------------------------

    @property
    def is_stalled(self) -> bool:
        """Items had to wait too long for somebody to take them, and nobody has come since; or it is closed."""
        return self._stalled or self._closed

    def enter(self, request: Request) -> Answer | None:
        """Let a request in; None: its answer comes later. Else it is the answer, and nothing of it is taken."""
        with self._lock:
            if self._closed:
                return _stopping(request)
            if request.key is not None:
                running = self._by_key.get(request.key)
                if running is not None:
                    return self._join(running, request)
                taken = self._keys.find(request.key)
                if taken is not None and (answer := self._repeat(request, taken)) is not None:
                    return answer
            if not request.items:
                return Answer(200 if request.waits else 202, _says(request))
            if self._is_full(request):
                return _full(self.waiting_items)
            self._admit(request)
            return None

    @staticmethod
    def _join(running: Request, request: Request) -> Answer | None:
        if running.body != request.body:
            return _mismatch()
        running.replies += request.replies
        return None

    @staticmethod
    def _repeat(request: Request, taken: Taken) -> Answer | None:
        """What one hears who was here before; None where some of the items are still to be taken."""
        if taken.body != request.body:
            return _mismatch()
        if not taken.complete:
            request.before = taken.count
            request.items = request.items[taken.count :]
            return None
        before: Answer = taken.answer or Answer(202, _says(request, taken.count))
        return before._replace(says={**before.says, "repeated": True})

    def _is_full(self, request: Request) -> bool:
        """Who comes alone finds room: else something large never would."""
        if not self._queue:
            return False
        too_many = self.waiting_items + len(request.items) > self._most_items
        return too_many or self.waiting_bytes + request.size_bytes > self._most_bytes

    def _admit(self, request: Request) -> None:
        request.entered_s = self._clock()
        self._queue.append(request)
        self._open[request] = None
        if request.key is not None:
            self._by_key[request.key] = request
        self.waiting_items += len(request.items)
        self.waiting_bytes += request.size_bytes
        if not self._rung:
            self._rung = True
            os.write(self._bell, b".")

    def expire(self, taken_within_s: float, complete_within_s: float) -> None:
        """Answer those that have waited too long to be taken, or to be complete."""
        answers: list[tuple[Request, Answer]] = []
        with self._lock:
            now_s = self._clock()
            for request in list(self._open):
                waited_s = now_s - request.entered_s
                if not request.all_read and waited_s > taken_within_s:
                    self._withdraw(request)
                    if request.all_kept:
                        answers.append((request, self._leave(request, _not_all(request))))
                elif request.waits and request.all_kept and waited_s > complete_within_s:
                    answers.append((request, self._leave(request, _incomplete(request))))
        self.hand_out(answers)

    def _withdraw(self, request: Request) -> None:
        """What nobody has taken of it is not there any more."""
        self._stalled = True
        request.withdrawn = True
        self._queue.remove(request)
        self._count_out(request)

    def _leave(self, request: Request, answer: Answer) -> Answer:
        del self._open[request]
        if request.key is not None:
            del self._by_key[request.key]
        return answer

    @staticmethod
    def hand_out(answers: list[tuple[Request, Answer]]) -> None:
        """Tell each request its answer, and those who have repeated it."""
        for request, answer in answers:
            replies, request.replies = request.replies, []
            for reply in replies:
                reply(answer)

    # -- the thread that reads -------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable while something waits to be taken."""
        return self._readable

    def take(self, max_items: int) -> tuple[list[Any], bool]:
        """Up to so many items, and whether a batch is to end with them."""
        items: list[Any] = []
        with self._lock:
            self._stalled = False
            while self._queue and len(items) < max_items:
                request = self._queue[0]
                if self._unborn and _is_apart(request, self._unborn[-1][0]):
                    return items, True
                items += self._take_from(request, max_items - len(items))
                if request.waits and request.all_read:
                    return items, True
        return items, False

    def _take_from(self, request: Request, most: int) -> list[Any]:
        found = request.items[request.read : request.read + most]
        request.read += len(found)
        self._unborn.append((request, len(found)))
        self.waiting_items -= len(found)
        if request.all_read:
            self._queue.popleft()
            self._count_out(request)
        return found

    def _count_out(self, request: Request) -> None:
        """It does not wait to be taken any more: all of it was, or the rest never is."""
        self.waiting_items -= len(request.items) - request.read
        self.waiting_bytes -= request.size_bytes
        request.items = []
        if self._rung and not self._queue:
            self._rung = False
            os.read(self._readable, 1)

    def born(self, seq: int, count: int) -> None:
        """The oldest ``count`` items taken are batch ``seq``."""
        with self._lock:
            parts = self._batches[seq] = []
            while count:
                request, part = self._unborn.popleft()
                count -= part
                parts.append((request, part))
                request.born += part
                request.open_batches.add(seq)
            assert not count, "a batch is made of whole reads"

    def note(self, seq: int) -> Note | None:
        """What is to be kept with a batch: how much is taken, with it, of each request that has a key."""
        with self._lock:
            with_key = dict.fromkeys(request for request, _ in self._batches[seq] if request.key is not None)
            entries = [(r.key or b"", r.body, r.before + r.born, r.before + r.born == r.total) for r in with_key]
            return self._keys.take(seq, self._clock(), entries) if entries else None

    def journalled(self, seq: int) -> None:
        """Batch ``seq`` is in the journal."""
        answers = []
        with self._lock:
            parts = self._batches[seq]
            for request, part in parts:
                request.kept += part
                if request in self._open and request.all_kept:
                    if request.withdrawn:
                        answers.append((request, self._leave(request, _not_all(request))))
                    elif not request.waits:
                        answers.append((request, self._leave(request, Answer(202, _says(request)))))
            if not any(request.waits for request, _ in parts):
                del self._batches[seq]
        if answers:
            self._deliver(answers)

    def failed(self, seq: int, failures: Sequence[Failure]) -> None:
        """These items of batch ``seq`` were given up; not all, where there are many."""
        for request, _ in self._batches.get(seq, ()):
            request.failures += failures

    def settled(self, seq: int, failed: int, *, confirmed: bool) -> None:
        """Batch ``seq`` is completely processed, or lost."""
        answers = []
        with self._lock:
            for request in dict.fromkeys(request for request, _ in self._batches.pop(seq, ())):
                request.failed += failed
                request.confirmed = request.confirmed and confirmed
                request.open_batches.discard(seq)
                if request in self._open and request.all_kept and not request.open_batches:
                    answer = self._leave(request, _complete(request))
                    answers.append((request, answer))
                    if request.key is not None and (taken := self._keys.find(request.key)) is not None:
                        taken.answer = answer
        if answers:
            self._deliver(answers)

    def close(self) -> None:
        """Nobody takes anything any more: everybody is answered. Harmless when repeated."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            answers = [(request, self._leave(request, _at_the_end(request))) for request in list(self._open)]
            self._queue.clear()
            os.close(self._readable)
            os.close(self._bell)
        self._deliver(answers)


def _is_apart(request: Request, before: Request) -> bool:
    return request is not before and (request.waits or before.waits)


# -- answers ---------------------------------------------------------------------------------------


def _says(request: Request, taken: int | None = None) -> dict[str, Any]:
    return {"taken": request.taken if taken is None else taken}


def _complete(request: Request) -> Answer:
    if request.failed:
        failures = [
            {"node": f.node, "item": str(f.item), "error": f.error, "attempts": f.attempts} for f in request.failures
        ]
        return Answer(500, {**_says(request), "complete": True, "failed": request.failed, "failures": failures})
    if not request.confirmed:
        return Answer(500, {**_says(request), "complete": False, "error": "a worker died, and nothing is journalled"})
    return Answer(200, {**_says(request), "complete": True})


def _incomplete(request: Request) -> Answer:
    return Answer(202, {**_says(request), "complete": False})


def _not_all(request: Request) -> Answer:
    taken = f"{request.taken} of its {request.total} items were taken" if request.taken else "nothing was taken"
    says = {"error": f"the pipeline takes no items just now, {taken}: send it again later", **_says(request)}
    return Answer(503, says, STALLED_RETRY_S)


def _at_the_end(request: Request) -> Answer:
    if request.all_kept and not request.withdrawn:
        return _incomplete(request)
    if not request.read:
        return _stopping(request)
    says = {
        "error": "the pipeline has stopped, and it is not known how much of this was taken: send it again later; only "
        "with an Idempotency-Key nothing is taken twice"
    }
    return Answer(503, says, STALLED_RETRY_S)


def _stopping(request: Request) -> Answer:
    says = {"error": "the pipeline is being stopped, nothing was taken: send it again later", "taken": request.before}
    return Answer(503, says, STALLED_RETRY_S)


def _full(waiting: int) -> Answer:
    says = {"error": f"{waiting} items wait to be taken already, nothing was taken: send it again later", "taken": 0}
    return Answer(429, says, FULL_RETRY_S)


def _mismatch() -> Answer:
    return Answer(422, {"error": "another body came with this Idempotency-Key before: give each request its own key"})
