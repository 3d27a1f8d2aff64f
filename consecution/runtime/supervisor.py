"""The supervisor: starts, wires, watches and restarts the workers, and ends the run.

It decides nothing about items: batches are the origins' business. Who must be told what after a death is
decided by `Recovery`, when nodes end by `Ending`; this file carries their orders out.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from multiprocess.connection import wait as wait_for

from consecution.errors import ConsecutionError, ProtocolError, WorkerError
from consecution.plan import Plan
from consecution.protocol.ending import Ending
from consecution.protocol.origin import FailureEntry, OriginCounts
from consecution.protocol.poison import Suspicion, Verdict
from consecution.protocol.recovery import Order, OrderReplay, Recovery, StartTask, WireTasks
from consecution.protocol.step import Counts
from consecution.protocol.values import TaskIndex
from consecution.runtime import control, failpoints
from consecution.runtime.assembly import SOURCE_TASK, drain_stages, end_stages
from consecution.runtime.books import Books
from consecution.runtime.launcher import WorkerProcess

LOOK_EVERY_S = 0.1
ABORT_WAIT_S = 0.5
"""How long a hanging worker has to write its stack after SIGABRT."""
QUIT_WAIT_S = 10.0
LONG_STEPS = ("begin", "end", "close")
LONG_STEP_STRETCH = 10
"""What is done once may take this many times the timeout."""
STANDSTILL_S = 1.0
"""Turns further apart than this: it was us who stood still (a stopped job, a frozen machine), not the workers."""
FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 5.0
MOST_GUILTY = 100
"""So many items of one node found guilty, and nothing completed between: it is the node, not its items."""

Launch = Callable[[TaskIndex, int], WorkerProcess]
"""Start a new incarnation of a task: (task, incarnation) → worker. OSError or EOFError: try again later."""

Wait = Callable[[list[Any], float], list[Any]]
"""Those of some pipes and sentinels that are ready, at the latest after so many seconds."""


@dataclass(slots=True)
class _Watched:
    """What the supervisor knows of one task."""

    incarnation: int = 0
    worker: WorkerProcess | None = None
    began: bool = False
    beat: control.Beat | None = None
    changed_s: float = 0.0
    aborted_s: float | None = None
    failure: control.Failed | None = None
    closed: control.Closed | None = None
    deaths: int = 0
    completed_at_death: int = -1
    start_due_s: float | None = None
    before: Counts = field(default_factory=Counts)


class Supervisor:
    """Runs the workers of one plan. `run` is called by one thread; `stop` and `abort` by any, signal handlers too."""

    def __init__(
        self,
        plan: Plan,
        launch: Launch,
        say: Callable[[str, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = wait_for,
    ) -> None:
        self.plan = plan
        self.restarts = 0
        self.confirmed = True
        self.stopped = False
        self.stop_cause: control.StopAsked | None = None
        self._launch = launch
        self._say = say
        self._clock = clock
        self._wait = wait
        self._tasks = {TaskIndex(task.index): _Watched() for task in plan.tasks}
        self._recovery = Recovery(self._tasks)
        self._suspicion = Suspicion()
        self._guilty: dict[str, tuple[int, int]] = {}
        """Node → how much was completed when its last item was found guilty, and how many were since that moved."""
        self._ending = Ending(end_stages(plan))
        self._drain = Ending(drain_stages(plan))
        self._closing = False
        self._gone = False
        self._stop_asked = False
        self._abort_asked = False
        self._stop_told = False
        self._to_end: set[TaskIndex] = set()
        self._replayed_before = 0
        self._turned_s = 0.0
        self._waking = threading.RLock()
        self._wake_read, self._wake_write = -1, -1

    # -- what other threads may call -------------------------------------------------------------

    def stop(self) -> None:
        """Sources take nothing more; what is open is finished."""
        self._stop_asked = True
        self._wake()

    def abort(self) -> None:
        """Stop at once."""
        self._abort_asked = True
        self._wake()

    def _wake(self) -> None:
        """Never after `run`: the descriptor's number may be somebody else's by then."""
        with self._waking:
            if self._wake_write >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_write, b".")

    @contextlib.contextmanager
    def _wakeable(self) -> Iterator[None]:
        with self._waking:
            self._wake_read, self._wake_write = os.pipe()
            os.set_blocking(self._wake_write, False)
        try:
            yield
        finally:
            with self._waking:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_write = -1

    def counts(self) -> dict[TaskIndex, Counts]:
        """What each task has done, all its incarnations together, as of their last beats."""
        return {task: _sum_counts(watched) for task, watched in self._tasks.items()}

    def origin_counts(self) -> OriginCounts:
        """The source's books, as of its last beat; what was replayed counts over all its incarnations."""
        beat = self._tasks[SOURCE_TASK].beat
        found = beat.origin if beat is not None else None
        if found is None:
            return OriginCounts(0, 0, 0, 0, self._replayed_before, 0)
        return replace(found, replayed=self._replayed_before + found.replayed)

    def books(self) -> Books:
        """The books of all origins, as of their last beats."""
        below = [w.beat.below for w in self._tasks.values() if w.beat is not None and w.beat.below is not None]
        return Books.of(self.origin_counts(), below)

    def failures(self) -> list[FailureEntry]:
        """Failed items that the workers remembered in memory."""
        return [e for w in self._tasks.values() if w.closed is not None for e in w.closed.failures]

    def pids(self) -> dict[str, int]:
        """Task name → process id of its worker; a source that is read in this process has none."""
        workers = [(task, watched.worker) for task, watched in self._tasks.items()]
        return {self._name(task): w.pid for task, w in workers if w is not None and w.sentinel is not None}

    @property
    def state(self) -> str:
        if self._stop_asked:
            return "stopping"
        if not self._recovery.settled:
            return "recovering" if self.restarts else "starting"
        return "ending" if self._ending.started else "running"

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Run to the end, or until stopped. Raises what ended the run before its time."""
        with self._wakeable():
            try:
                self._carry_out(self._recovery.begin())
                self._turned_s = self._clock()
                while not self._is_over():
                    self._turn()
                self.stopped = self._abort_asked or not self._ending.finished
                if not self._abort_asked:
                    self._quit_all()
            finally:
                self._kill_all()

    def _turn(self) -> None:
        self._listen(self._wait_s())
        self._start_what_is_due()
        self._forgive_standstill()
        self._look_for_hanging()

    def _forgive_standstill(self) -> float:
        """Time in which this loop did not run says nothing about the workers: they may have stood still too."""
        now_s = self._clock()
        stood_s = now_s - self._turned_s - LOOK_EVERY_S
        self._turned_s = now_s
        if stood_s <= STANDSTILL_S:
            return 0.0
        for watched in self._tasks.values():
            watched.changed_s = min(now_s, watched.changed_s + stood_s)
        return stood_s

    def _is_over(self) -> bool:
        if self._abort_asked:
            return True
        if self._ending.started or not self._stop_asked:
            return self._ending.finished
        if not self._stop_told and self._recovery.settled:
            self._stop_told = True
            self._tell(SOURCE_TASK, control.StopReading())
        source = self._tasks[SOURCE_TASK].beat
        if source is not None and source.drained:
            self._end(self._drain.source_finished())
        return self._drain.finished

    def _wait_s(self) -> float:
        due = [w.start_due_s for w in self._tasks.values() if w.start_due_s is not None]
        return min([LOOK_EVERY_S, *(max(0.0, due_s - self._clock()) for due_s in due)])

    def _listen(self, timeout_s: float) -> None:
        """Hear what workers say; the deaths last, so that last words count."""
        pipes: dict[Any, TaskIndex] = {}
        sentinels: dict[Any, TaskIndex] = {}
        for task, watched in self._tasks.items():
            if watched.worker is not None:
                if watched.worker.pipe is not None and not watched.worker.pipe.closed:
                    pipes[watched.worker.pipe] = task
                if watched.worker.sentinel is not None:
                    sentinels[watched.worker.sentinel] = task
        ready = self._wait([*pipes, *sentinels, self._wake_read], timeout_s)
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        for found in ready:
            if found in pipes:
                self._hear(pipes[found])
        for found in ready:
            if found in sentinels:
                self._mourn(sentinels[found])

    def _hear(self, task: TaskIndex) -> None:
        watched = self._tasks[task]
        worker = watched.worker
        while worker is not None and (word := _next_word(worker.pipe)) is not None:
            self._take_word(task, watched, word)

    def _take_word(self, task: TaskIndex, watched: _Watched, word: Any) -> None:
        if isinstance(word, control.Beat):
            self._take_beat(watched, word)
        elif isinstance(word, control.Hello):
            watched.changed_s = self._clock()
            self._carry_out(self._recovery.started(task, word.endpoint))
            self._tell_again(task)
        elif isinstance(word, control.Began):
            watched.began = True
            watched.changed_s = self._clock()
        elif isinstance(word, control.Switched):
            self._carry_out(self._recovery.switched(task, word.version))
        elif isinstance(word, control.Ended):
            self.confirmed = self.confirmed and word.confirmed
            self._end((self._drain if self._drain.started else self._ending).task_ended(task))
        elif isinstance(word, control.StopAsked):
            self.stop_cause = self.stop_cause or word
            self._stop_asked = True
        elif isinstance(word, control.Closed):
            watched.closed = word
            self._take_beat(watched, word.beat)
            self.confirmed = self.confirmed and word.confirmed
        elif isinstance(word, control.Failed):
            self._take_failure(task, watched, word)
        else:
            raise ProtocolError(f"the supervisor got {word!r} from {self._name(task)}")

    def _take_beat(self, watched: _Watched, beat: control.Beat) -> None:
        last = watched.beat
        if last is None or beat.progress != last.progress or not beat.occupied_with or not last.occupied_with:
            watched.changed_s = self._clock()
        watched.beat = beat
        if beat.finished and not self._stop_asked and self._recovery.settled:
            self._end(self._ending.source_finished())

    def _tell_again(self, task: TaskIndex) -> None:
        """What the last incarnation was told about stopping, the new one must be told too: before it may read."""
        if task == SOURCE_TASK and self._stop_told:
            self._tell(task, control.StopReading())
        if self._closing:
            self._tell(task, control.Quit())

    def _end(self, tasks: list[TaskIndex]) -> None:
        self._to_end.update(tasks)
        self._tell_ends()

    def _remember_ends(self) -> None:
        """A new incarnation of a durable task was not told; for one that was, the repeat changes nothing."""
        if self.plan.options.robust:
            self._to_end.update((self._drain if self._drain.started else self._ending).told)

    def _tell_ends(self) -> None:
        """What ``end`` pushes must reach somebody, and who is to run it must be there: all live and are wired."""
        if self._recovery.settled:
            order = control.Drain() if self._drain.started else control.RunEnd()
            for task in sorted(self._to_end):
                self._tell(task, order)
            self._to_end.clear()

    def _take_failure(self, task: TaskIndex, watched: _Watched, failed: control.Failed) -> None:
        """A worker says why it dies. What no restart can mend ends the run."""
        watched.failure = failed
        if failed.error is not None:
            error: ConsecutionError = pickle.loads(failed.error)
            error.add_note(f"in {self._name(task)}, {failed.doing}:\n{failed.traceback}")
            raise error
        never_began = self.restarts == 0 and not watched.began
        if never_began or failed.doing in ("end", "close") or task == SOURCE_TASK:
            raise self._worker_error(
                task,
                f"{failed.doing}() raised {failed.message}" if failed.doing != "start" else failed.message,
            )

    def _worker_error(self, task: TaskIndex, what: str) -> WorkerError:
        failure = self._tasks[task].failure
        text = failure.traceback if failure is not None else ""
        made = WorkerError(f"{self._name(task)}: {what}", task=self._name(task), cause_text=text)
        if text:
            made.add_note(text)
        return made

    # -- deaths ----------------------------------------------------------------------------------

    def _mourn(self, task: TaskIndex) -> None:
        """A worker is dead: hear its last words, make sure it is gone, start it again."""
        watched = self._tasks[task]
        worker = watched.worker
        assert worker is not None
        self._hear(task)
        if not worker.join(QUIT_WAIT_S):
            raise WorkerError(f"{self._name(task)}: process {worker.pid} cannot be killed", task=self._name(task))
        self._hear(task)
        how = worker.death()
        worker.pipe.close()
        self._forget_worker(task, watched)
        if watched.closed is not None or self._gone:
            return
        failpoints.passed("supervisor.mourned")
        if (error := worker.start_error()) is not None:
            raise error
        if not self.plan.options.robust and self._lose(task, how):
            return
        if self._investigate(task, worker, how):
            watched.start_due_s = self._clock()
        else:
            self._count_death(task, watched, how)
        self._carry_out(self._recovery.died(task))

    def _forget_worker(self, task: TaskIndex, watched: _Watched) -> None:
        """The counts of an incarnation that is over go into the sums."""
        watched.before = _sum_counts(watched)
        watched.worker, watched.began, watched.aborted_s = None, False, None

    # -- poison ----------------------------------------------------------------------------------

    def verdicts(self, task: TaskIndex) -> tuple[Verdict, ...]:
        """What a new incarnation of this task must know of poison."""
        return self._suspicion.verdicts(self.plan.task(task).node)

    def _investigate(self, task: TaskIndex, worker: WorkerProcess, how: str) -> bool:
        """Ask what it died at. Whether that leads to a verdict, which is progress: such a death does not count."""
        in_hand = worker.in_hand() if self.plan.options.robust else None
        if in_hand is None:
            return False
        node = self.plan.task(task).node
        verdict = self._suspicion.died(node, in_hand, how, worker.native_stack)
        if verdict is None:
            return False
        self._proclaim(task, node, verdict)
        if verdict.item:
            self._count_guilty(task, node, how)
        return True

    def _proclaim(self, task: TaskIndex, node: str, verdict: Verdict) -> None:
        """Tell every replica; who is dead just now learns it at its start."""
        what = "leaving out the item it was at" if verdict.item else "trying the items of its frame one by one"
        self._say("supervisor", f"{self._name(task)} died again at the same place ({verdict.how}): {what}")
        for index in self.plan.node(node).tasks:
            replica = TaskIndex(index)
            self._tasks[replica].deaths = 0
            self._tell(replica, control.Judged((verdict,)))

    def _count_guilty(self, task: TaskIndex, node: str, how: str) -> None:
        completed = self.origin_counts().completed
        before, count = self._guilty.get(node, (completed, 0))
        count = count + 1 if before == completed else 1
        self._guilty[node] = (completed, count)
        if count > MOST_GUILTY:
            raise self._worker_error(
                task,
                f"{count} items in a row took their worker down ({how}): it is node {node!r} that is broken, not its "
                "items; what is open is kept: mend the node and run again with the same state directory",
            )

    # -- restarts --------------------------------------------------------------------------------

    def _count_death(self, task: TaskIndex, watched: _Watched, how: str) -> None:
        completed = self.origin_counts().completed
        watched.deaths = watched.deaths + 1 if completed == watched.completed_at_death else 1
        watched.completed_at_death = completed
        most = self.plan.options.max_restarts
        if watched.deaths > most:
            reason = f": {watched.failure.message}" if watched.failure is not None else ""
            raise self._worker_error(
                task,
                f"died {watched.deaths} times without progress between ({how}{reason}); what is open is kept: mend "
                f"the node and run again with the same state directory (max_restarts={most})",
            )
        delay_s = 0.0 if watched.deaths == 1 else FIRST_BACK_OFF_S * 2.0 ** (watched.deaths - 2)
        watched.start_due_s = self._clock() + min(delay_s, LONGEST_BACK_OFF_S)
        self._say("supervisor", f"{self._name(task)} died: {how}; starting it again")

    def _lose(self, task: TaskIndex, how: str) -> bool:
        """Without a journal a death means: nobody knows what was processed. Returns whether it stays dead."""
        if not self._recovery.replayed_version:
            return False
        self.confirmed = False
        if self._closing:
            self._say("supervisor", f"{self._name(task)} died while it closed: {how}")
            return True
        if task == SOURCE_TASK:
            raise self._worker_error(task, f"the source died ({how}); only robustness='robust' can go on after that")
        self._to_end.discard(task)
        self._end(self._ending.task_ended(task))
        return False

    def _start_what_is_due(self) -> None:
        now_s = self._clock()
        for task, watched in self._tasks.items():
            if watched.start_due_s is not None and watched.start_due_s <= now_s:
                watched.start_due_s = None
                self.restarts += 1
                self._start(task, watched)

    def _look_for_hanging(self) -> None:
        """A worker that has made no progress for too long is killed; first with a signal that shows its stack."""
        now_s = self._clock()
        for task, watched in self._tasks.items():
            worker = watched.worker
            if worker is None or worker.sentinel is None:
                continue
            if watched.aborted_s is not None:
                if now_s - watched.aborted_s > ABORT_WAIT_S:
                    worker.signal(signal.SIGKILL)
                continue
            what = watched.beat.occupied_with if watched.beat is not None else "starting"
            long = what in LONG_STEPS or not watched.began
            limit_s = self.plan.options.timeout_s * (LONG_STEP_STRETCH if long else 1)
            if now_s - watched.changed_s > limit_s:
                self._say(
                    "supervisor",
                    f"{self._name(task)} (pid {worker.pid}) has made no progress in {what or 'its loop'} for "
                    f"{limit_s:g} s: killing it",
                )
                watched.aborted_s = now_s
                worker.signal(signal.SIGABRT)

    # -- orders ----------------------------------------------------------------------------------

    def _carry_out(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, StartTask):
                watched = self._tasks[order.task]
                if watched.start_due_s is None:
                    self._start(order.task, watched)
            elif isinstance(order, WireTasks):
                for task in order.tasks:
                    self._tell(task, control.Wire(order.version, order.endpoints))
                failpoints.passed("supervisor.wired")
            elif isinstance(order, OrderReplay):
                for task in self._tasks:
                    self._tell(task, control.Replay(after_death=self.restarts > 0))
                self._remember_ends()
                self._tell_ends()
                failpoints.passed("supervisor.replayed")

    def _start(self, task: TaskIndex, watched: _Watched) -> None:
        watched.incarnation += 1
        watched.beat = self._beat_at_start(task, watched)
        watched.failure = None
        watched.changed_s = self._clock()
        try:
            watched.worker = self._launch(task, watched.incarnation)
        except (OSError, EOFError) as error:
            self._count_death(task, watched, f"it cannot be started: {type(error).__name__}: {error}")
        failpoints.passed("supervisor.started_worker")

    def _beat_at_start(self, task: TaskIndex, watched: _Watched) -> control.Beat | None:
        """Nothing is known of a new worker; the source's books, which it will read from its journal, are."""
        beat = watched.beat
        if task != SOURCE_TASK or beat is None or beat.origin is None:
            return None
        self._replayed_before += beat.origin.replayed
        return replace(beat, items_in=0, items_out=0, origin=replace(beat.origin, replayed=0))

    def _tell(self, task: TaskIndex, order: Any) -> None:
        """A worker that cannot be told is dead; its sentinel will say so."""
        worker = self._tasks[task].worker
        if worker is not None:
            with contextlib.suppress(OSError, ValueError):
                worker.pipe.send(order)

    # -- the end ---------------------------------------------------------------------------------

    def _quit_all(self) -> None:
        """Everybody closes; the source first, so that nobody is sent anything any more."""
        self._closing = True
        for task in self._tasks:
            self._tell(task, control.Quit())
        limit_s = max(QUIT_WAIT_S, self.plan.options.timeout_s)
        deadline_s = self._clock() + limit_s
        while self._somebody_is_left() and not self._abort_asked:
            self._listen(self._wait_s())
            self._start_what_is_due()
            self._let_go_of_threads()
            deadline_s += self._forgive_standstill()
            if any(w.start_due_s is not None for w in self._tasks.values()):
                deadline_s = self._clock() + limit_s
            if self._clock() > deadline_s and self._somebody_is_left():
                raise self._slow_to_close(limit_s)

    def _somebody_is_left(self) -> bool:
        return any(w.worker is not None or w.start_due_s is not None for w in self._tasks.values())

    def _let_go_of_threads(self) -> None:
        """A thread has no sentinel: its last word is its end."""
        for task, watched in self._tasks.items():
            worker = watched.worker
            if worker is not None and worker.sentinel is None and watched.closed is not None:
                worker.join(QUIT_WAIT_S)
                worker.pipe.close()
                self._forget_worker(task, watched)

    def _slow_to_close(self, limit_s: float) -> WorkerError:
        """Let those that hang show where, and name them."""
        left = [(task, w.worker) for task, w in self._tasks.items() if w.worker is not None]
        for _, worker in left:
            worker.signal(signal.SIGABRT)
        self._gone = True
        for _, worker in left:
            worker.join(ABORT_WAIT_S)
        names = ", ".join(self._name(task) for task, _ in left)
        return WorkerError(
            f"{names}: close() has not returned within {limit_s:g} s; everything is processed, but what close() "
            "had to do may be missing",
            task=self._name(left[0][0]) if left else "",
        )

    def _kill_all(self) -> None:
        """Kill whatever still runs, and wait until it is gone."""
        self._gone = True
        left = [(task, w, w.worker) for task, w in self._tasks.items() if w.worker is not None]
        for _, _, worker in left:
            worker.signal(signal.SIGKILL)
        for task, watched, worker in left:
            worker.join(QUIT_WAIT_S)
            if not worker.pipe.closed:
                worker.pipe.close()
            self._forget_worker(task, watched)

    def _name(self, task: TaskIndex) -> str:
        return self.plan.task(task).name


def _next_word(pipe: Any) -> Any:
    """None: there is none just now, or there will be none any more; then the pipe is closed."""
    try:
        return pipe.recv() if pipe.poll() else None
    except (EOFError, OSError):
        pipe.close()
        return None


def _sum_counts(watched: _Watched) -> Counts:
    total = Counts()
    before, beat = watched.before, watched.beat
    live = beat if watched.worker is not None else None
    total.items_in = before.items_in + (live.items_in if live is not None else 0)
    total.items_out = before.items_out + (live.items_out if live is not None else 0)
    total.failed = before.failed + (live.failed if live is not None else 0)
    total.busy_s = before.busy_s + (live.busy_s if live is not None else 0.0)
    return total


__all__ = ["Supervisor"]
