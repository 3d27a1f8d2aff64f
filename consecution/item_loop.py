"""Runs the coroutines of a node: many items on their way at once, in one event loop.

The rules this file keeps:

1. Items begin in the order in which they came, whichever frame they are of; at most ``concurrency`` are on their way.
2. What an item pushes is its own, however the coroutines take turns, until its ``process`` has returned.
3. An item that raises, or takes longer than its time, fails alone.
4. While the loop turns, `progress` changes; not where a coroutine holds the loop, or an item cannot be cancelled.
5. Whatever a coroutine does to the loop, every job is finished: its owner waits for that, and for nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

from consecution.errors import text_of
from consecution.protocol.values import USER_ERRORS

TICK_S = 0.25
CLOSE_WAIT_S = 5.0
"""How long a loop that a coroutine holds is waited for; a thread cannot be killed."""


class BrokenLoopError(BaseException):
    """The loop cannot turn any more, which is no item's fault: whoever takes in the results raises it."""


class AsyncNode(Protocol):
    """What the loop needs of a node."""

    name: str
    concurrency: int

    async def process(self, item: Any) -> Any: ...


class Touch(Protocol):
    """Told that coroutines of a job are about to run, and that they have: for when the process dies of it."""

    def begins(self) -> None: ...

    def pauses(self) -> None: ...


class _Hand:
    """Takes what one item pushes, while it is processed."""

    __slots__ = ("out",)

    def __init__(self) -> None:
        self.out: list[Any] | None = []


_HAND: contextvars.ContextVar[_Hand] = contextvars.ContextVar("consecution_hand")


def push_from_hand(item: Any) -> None:
    """What ``self.push`` comes to in a coroutine. RuntimeError where no item is being processed."""
    hand = _HAND.get(None)
    if hand is None or hand.out is None:
        raise RuntimeError("push() belongs into process(item), and must come before that returns: await what you start")
    hand.out.append(item)


class Job:
    """Some items on their way together. ``finished`` is called by the loop's thread when all are done."""

    __slots__ = ("begun", "errors", "finished", "items", "left", "outs", "touch")

    def __init__(self, items: list[Any], finished: Callable[[], None], touch: Touch | None = None) -> None:
        self.items = items
        self.finished = finished
        self.touch = touch
        self.outs: list[list[Any] | None] = [None] * len(items)
        self.errors: list[BaseException | None] = [None] * len(items)
        self.begun = 0
        self.left = len(items)

    @property
    def done(self) -> bool:
        return not self.left

    def break_off(self, error: BrokenLoopError) -> None:
        """Nothing more will be done about it."""
        self.errors = [
            error if out is None and found is None else found for out, found in zip(self.outs, self.errors, strict=True)
        ]
        self.left = 0
        self.finished()


class ItemLoop:
    """The event loop of one node in one task.

    Until `start` it turns only while its owner waits: in `run`, `call` and `turn`. Afterwards it has a thread.
    """

    def __init__(self, node: AsyncNode, timeout_s: float | None = None, patience_s: float = 30.0) -> None:
        """``timeout_s`` is the time of one item; where it has none, it is not watched either."""
        self._node = node
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._jobs: set[Job] = set()
        """Those that the loop's thread was given, and has not finished."""
        self._waiting: deque[Job] = deque()
        self._running: dict[asyncio.Task[None], float] = {}
        self._ended_items = 0
        self._ticks = 0
        self._tick: asyncio.TimerHandle | None = None
        self._closing = False
        self._left = False
        self._broken: BrokenLoopError | None = None
        self._news: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._loop = asyncio.new_event_loop()
        weakref.finalize(self, _close_quietly, self._loop)

    def progress(self) -> tuple[int, int]:
        """Changes as long as the loop turns and all items keep to their time; any thread may ask."""
        return self._ended_items, self._ticks

    # -- for its owner ---------------------------------------------------------------------------

    def start(self) -> None:
        """From now on the loop turns in a thread of its own."""
        self._thread = threading.Thread(target=self._turn, name=f"consecution-{self._node.name}-loop", daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        """Until `_leave`. A coroutine may stop the loop, or raise what comes out of it: then it turns on."""
        asyncio.set_event_loop(self._loop)
        try:
            while not self._left:
                with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the task that has raised it has it, too
                    self._loop.run_forever()
        except BaseException as error:
            self._broken = BrokenLoopError(f"{self._node}: its event loop does not turn any more: {text_of(error)}")
            self._broken.__cause__ = error
            for job in list(self._jobs):
                job.break_off(self._broken)

    def _leave(self) -> None:
        self._left = True
        self._loop.stop()

    def submit(self, job: Job) -> None:
        """Begin with the items as soon as their turn has come."""
        if self._thread is None:
            self._add(job)
            return
        self._jobs.add(job)
        if self._broken is None:
            self._loop.call_soon_threadsafe(self._add, job)
        if self._broken is not None:  # looked at last: whoever breaks it off may just have missed this job
            job.break_off(self._broken)

    def turn(self, longest_s: float) -> None:
        """Without a thread: let the loop turn until a job is finished, but not longer than that."""
        self._complete(self._until_news(longest_s))

    async def _until_news(self, longest_s: float) -> None:
        self._news = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), longest_s)

    def run(self, items: list[Any]) -> Job:
        """All of them, now. In this thread, unless the loop has its own, or another loop turns in this one."""
        over = threading.Event()
        job = Job(items, over.set)
        if self._thread is not None:
            self.submit(job)
            over.wait()
        else:
            self._complete(self._until_done(job))
        return job

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function of the user's, and wait for it if it is async. Not after `start`."""
        made = function()
        return self._complete(made) if asyncio.iscoroutine(made) else made

    def _complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if asyncio._get_running_loop() is None:
            return self._loop.run_until_complete(coroutine)
        # In a notebook the caller is itself inside of a loop, which cannot turn another one.
        made: list[Any] = []
        errors: list[BaseException] = []

        def complete() -> None:
            try:
                made.append(self._loop.run_until_complete(coroutine))
            except BaseException as error:
                errors.append(error)

        helper = threading.Thread(target=complete, daemon=True)
        helper.start()
        helper.join()
        if errors:
            raise errors[0]
        return made[0]

    async def _until_done(self, job: Job) -> None:
        over = asyncio.Event()
        job.finished = over.set
        self._add(job)
        if not job.done:
            await over.wait()

    def close(self, last: Callable[[], Any] | None = None) -> None:
        """Cancel what is on its way, call ``last``, the node's ``close``, and close the loop. Harmless when repeated.

        A thread whose loop a coroutine holds is left behind. Raises what broke the loop.
        """
        if self._loop.is_closed():
            return
        self._closing = True
        if self._thread is not None:
            if self._broken is None:
                self._loop.call_soon_threadsafe(self._leave)
            self._thread.join(CLOSE_WAIT_S)
            if self._thread.is_alive():
                return
            self._thread = None
        try:
            if self._broken is not None:
                raise self._broken
            self._complete(self._cancel_all())
            if last is not None:
                self.call(last)
            self._complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    async def _cancel_all(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CLOSE_WAIT_S) if tasks else None

    # -- in the loop -----------------------------------------------------------------------------

    def _add(self, job: Job) -> None:
        if job.done:
            self._finish(job)
            return
        self._waiting.append(job)
        self._fill()
        if self._tick is None and self._thread is not None:
            self._tick = self._loop.call_later(TICK_S, self._take_tick)

    def _fill(self) -> None:
        waiting, running, concurrency = self._waiting, self._running, self._node.concurrency
        while waiting and len(running) < concurrency and not self._closing:
            job = waiting[0]
            index = job.begun
            job.begun += 1
            if job.begun == len(job.items):
                waiting.popleft()
            coroutine: Coroutine[Any, Any, None] = self._process(job, index)
            if job.touch is not None:
                coroutine = _Touching(coroutine, job.touch)
            task = self._loop.create_task(coroutine)
            running[task] = self._loop.time()
            task.add_done_callback(functools.partial(self._ended, job, index))

    async def _process(self, job: Job, index: int) -> None:
        hand = _Hand()
        _HAND.set(hand)
        try:
            if self._timeout_s is None:
                await self._node.process(job.items[index])
            else:
                await self._process_in_time(job.items[index], self._timeout_s)
            job.outs[index] = hand.out
        except USER_ERRORS as error:
            job.errors[index] = error
        finally:
            hand.out = None

    async def _process_in_time(self, item: Any, timeout_s: float) -> None:
        scope = asyncio.timeout(timeout_s)
        try:
            async with scope:
                await self._node.process(item)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise TimeoutError(f"{self._node}: it took longer than {timeout_s:g} s") from error

    def _ended(self, job: Job, index: int, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if task.cancelled():
            job.errors[index] = RuntimeError(f"{self._node}: its coroutine was cancelled")
        elif (error := task.exception()) is not None:
            job.errors[index] = error  # no item's fault: whoever takes in the results raises it
        self._ended_items += 1
        job.left -= 1
        if job.done:
            self._finish(job)
        self._fill()

    def _finish(self, job: Job) -> None:
        self._jobs.discard(job)
        job.finished()
        if self._news is not None:
            self._news.set()

    def _take_tick(self) -> None:
        """Items that have begun stand in ``_running`` in that order: the first is the oldest."""
        self._tick = None
        if not self._running:
            return
        oldest_s = self._loop.time() - next(iter(self._running.values()))
        if self._timeout_s is None or oldest_s < self._timeout_s + self._patience_s:
            self._ticks += 1
        self._tick = self._loop.call_later(TICK_S, self._take_tick)


def _close_quietly(loop: asyncio.AbstractEventLoop) -> None:
    """Of a loop that nobody has closed; one that still turns goes on."""
    with contextlib.suppress(RuntimeError):
        loop.close()


class _Touching(Coroutine[Any, Any, None]):
    """A coroutine that says so whenever it runs."""

    def __init__(self, inner: Coroutine[Any, Any, None], touch: Touch) -> None:
        self._inner = inner
        self._touch = touch

    def send(self, value: Any) -> Any:
        self._touch.begins()
        try:
            return self._inner.send(value)
        finally:
            self._touch.pauses()

    def throw(self, *error: Any) -> Any:
        self._touch.begins()
        try:
            return self._inner.throw(*error)
        finally:
            self._touch.pauses()

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._inner.__await__()
