"""The supervisor: starts, wires, watches and restarts the workers, and ends the run.

It decides nothing about items: batches are the origins' business. Who must be told what after a death is
decided by `Recovery`, when nodes end by `Ending`; this file carries their orders out.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from consecution.errors import ConsecutionError, ProtocolError, WorkerError, text_of
from consecution.plan import Plan, WorkerPlan
from consecution.protocol.ending import Ending
from consecution.protocol.origin import FailureEntry, OriginCounts
from consecution.protocol.poison import Suspicion, Verdict
from consecution.protocol.recovery import Order, OrderReplay, Recovery, StartWorker, WireWorkers
from consecution.protocol.step import Counts
from consecution.protocol.values import TaskIndex, WorkerIndex
from consecution.runtime import control, failpoints
from consecution.runtime.affinities import Affinities
from consecution.runtime.assembly import drain_stages, end_stages, source_tasks
from consecution.runtime.books import NO_COUNTS, Books, add_counts
from consecution.runtime.launcher import WorkerProcess
from consecution.runtime.readiness import Readiness

LOOK_EVERY_S = 0.1
ABORT_WAIT_S = 0.5
"""How long a hanging worker has to write its stack after SIGABRT."""
STILL_WAIT_S = 0.05
"""How long the thread has to end that tells how far it is. Where one runs while stacks are written, the interpreter may
read what is just being changed, and die of that before it has written what everybody waits for."""
QUIT_WAIT_S = 10.0
LONG_STEPS = ("begin", "end", "close")
LONG_STEP_STRETCH = 10
"""What is done once may take this many times the timeout."""
FRESH_WAIT_S = 0.1
"""So long whoever asks how far a run is waits for its workers; one may be stopped, or only just be starting."""
FRESH_S = 0.05
"""What was told so short a time ago is not asked for again."""
STANDSTILL_S = 1.0
"""Turns further apart than this: it was us who stood still (a stopped job, a frozen machine), not the workers."""
FIRST_BACK_OFF_S = 0.1
LONGEST_BACK_OFF_S = 5.0
LONGEST_REASON = 300
MOST_GUILTY = 100
"""So many items of one node found guilty, and nothing completed between: it is the node, not its items."""

Launch = Callable[[WorkerIndex, int], WorkerProcess]
"""Start a new incarnation of a worker: (worker, incarnation) → its process. OSError or EOFError: try again later."""

Wait = Callable[[list[Any], float], list[Any]]
"""Those of some pipes and sentinels that are ready, at the latest after so many seconds."""


@dataclass(slots=True)
class _Seen:
    """What the supervisor knows of one task, as of its last beat; ``before`` is what its earlier incarnations did."""

    beat: control.Beat | None = None
    before: Counts = field(default_factory=Counts)
    at_frame_since_s: float = 0.0
    """When it was last seen to be done with a frame, or with all."""


@dataclass(slots=True)
class _Watched:
    """What the supervisor knows of one worker."""

    plan: WorkerPlan
    incarnation: int = 0
    process: WorkerProcess | None = None
    greeted: bool = False
    """It has said hello: what it dies of from then on is not its start."""
    began: bool = False
    occupied_with: str = ""
    changed_s: float = 0.0
    stilled_s: float | None = None
    """When it was told to tell no more, for it hangs,"""
    aborted_s: float | None = None
    """and when it was asked for its stack."""
    hung: str = ""
    """Why it was killed, to follow how it died."""
    failure: control.Failed | None = None
    closed: control.Closed | None = None
    deaths: int = 0
    completed_at_death: int = -1
    start_due_s: float | None = None

    @property
    def tasks(self) -> list[TaskIndex]:
        return [TaskIndex(task) for task in self.plan.tasks]


class Supervisor:
    """Runs the workers of one plan. `run` is called by one thread; `stop` and `abort` by any, signal handlers too.

    ``on_turn`` is called whenever the loop has come round, ten times a second or more: as long as it is, all is well.
    """

    def __init__(
        self,
        plan: Plan,
        launch: Launch,
        say: Callable[[str, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait | None = None,
        on_turn: Callable[[], None] = lambda: None,
        affinities: Affinities | None = None,
    ) -> None:
        self.plan = plan
        self.restarts = 0
        self.confirmed = True
        self.stopped = False
        self.stop_cause: control.StopAsked | None = None
        self._launch = launch
        self._say = say
        self._clock = clock
        self._wait = wait or Readiness()
        self._on_turn = on_turn
        self._affinities = affinities
        self._tasks = {TaskIndex(task.index): _Seen() for task in plan.tasks}
        self._workers = {WorkerIndex(worker.index): _Watched(worker) for worker in plan.workers}
        self._sources = source_tasks(plan)
        self._homes = {task: worker for worker, watched in self._workers.items() for task in watched.tasks}
        self._recovery = Recovery(self._workers)
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
        self._pause_asked = False
        self._pause_told = False
        self._to_end: set[TaskIndex] = set()
        self._replayed_before = dict.fromkeys(self._sources, 0)
        self._told_of_work_s = -math.inf
        self._turned_s = math.inf
        """When the loop last came round; before it has begun, never too long ago."""
        self._fresh_s = -math.inf
        self._askers: deque[threading.Event] = deque()
        """Each is set when all workers have said how far they are;"""
        self._asked_for: list[threading.Event] = []
        """those for whose sake they were asked."""
        self._owing: set[WorkerIndex] = set()
        """Who was asked how far it is, and has not said so yet; used by the loop."""
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

    def pause(self, *, paused: bool) -> None:
        """Sources are not read until this is called again with False; what is open goes on."""
        self._pause_asked = paused
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

    def freshen(self) -> None:
        """Have all workers say how far they are, and wait for that a moment. Not for the thread of `run`."""
        if self._wake_write < 0 or self._clock() - self._fresh_s < FRESH_S:
            return
        told = threading.Event()
        self._askers.append(told)
        self._wake()
        told.wait(FRESH_WAIT_S)

    def counts(self) -> dict[TaskIndex, Counts]:
        """What each task has done, all its incarnations together, as of their last beats."""
        return {task: _sum_counts(seen) for task, seen in self._tasks.items()}

    def origin_counts(self) -> dict[TaskIndex, OriginCounts]:
        """The sources' books, as of their last beats; what was replayed counts over all their incarnations."""
        return {task: self._counts_of(task) for task in self._sources}

    def _counts_of(self, source: TaskIndex) -> OriginCounts:
        beat = self._tasks[source].beat
        found = beat.origin if beat is not None and beat.origin is not None else NO_COUNTS
        return replace(found, replayed=self._replayed_before[source] + found.replayed)

    def _completed(self) -> int:
        return add_counts(self.origin_counts().values()).completed

    def books(self) -> Books:
        """The books of all origins, as of their last beats."""
        beats = [seen.beat for seen in self._tasks.values()]
        below = [beat.below for beat in beats if beat is not None and beat.below is not None]
        return Books.of(self.origin_counts(), below)

    def addresses(self) -> dict[TaskIndex, Any]:
        """Where the sources listen that do, as of their last beats."""
        beats = [self._tasks[task].beat for task in self._sources]
        return {beat.task: beat.address for beat in beats if beat is not None}

    def failures(self) -> list[FailureEntry]:
        """Failed items that the workers remembered in memory."""
        return [e for w in self._workers.values() if w.closed is not None for e in w.closed.failures]

    def pids(self) -> dict[str, int]:
        """Task name → process id of the worker that hosts it; a source that is read in this process has none."""
        found = [(task, self._workers[home].process) for task, home in self._homes.items()]
        return {self._name(task): p.pid for task, p in found if p is not None and p.sentinel is not None}

    @property
    def stood_s(self) -> float:
        """How long ago the loop has come round."""
        return max(0.0, self._clock() - self._turned_s)

    @property
    def ready(self) -> bool:
        """Whether all workers are up: every ``begin`` has returned, and all are wired."""
        return self._recovery.settled and all(watched.began for watched in self._workers.values())

    @property
    def state(self) -> str:
        if self._stop_asked:
            return "stopping"
        if not self._recovery.settled:
            return "recovering" if self.restarts else "starting"
        if self._ending.started:
            return "ending"
        if not self._pause_asked:
            return "running"
        return "paused" if self._all_sources(lambda beat: beat.resting) else "pausing"

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
        self._tell_pause()
        self._ask_for_beats()
        self._start_what_is_due()
        self._forgive_standstill()
        self._look_for_hanging()
        self._tell_of_long_work()
        self._give_cores()
        self._on_turn()

    def _forgive_standstill(self) -> float:
        """Time in which this loop did not run says nothing about the workers: they may have stood still too."""
        now_s = self._clock()
        stood_s = now_s - self._turned_s - LOOK_EVERY_S
        self._turned_s = now_s
        if stood_s <= STANDSTILL_S:
            return 0.0
        for watched in self._workers.values():
            watched.changed_s = min(now_s, watched.changed_s + stood_s)
        return stood_s

    def _is_over(self) -> bool:
        if self._abort_asked:
            return True
        if self._ending.started or not self._stop_asked:
            return self._ending.finished
        if not self._stop_told and self._recovery.settled:
            self._stop_told = True
            for worker in self._source_homes():
                self._tell(worker, control.StopReading())
        if self._all_sources(lambda beat: beat.drained):
            self._end(self._drain.source_finished())
        return self._drain.finished

    def _tell_pause(self) -> None:
        if self._pause_told != self._pause_asked:
            self._pause_told = self._pause_asked
            for worker in self._source_homes():
                self._tell(worker, control.Pause(self._pause_told))

    def _ask_for_beats(self) -> None:
        """Not again who has not answered: the pipe of one that is stopped must not fill up."""
        if not self._askers:
            return
        while self._askers:
            self._asked_for.append(self._askers.popleft())
        for worker in self._workers:
            if worker not in self._owing:
                self._owing.add(worker)
                self._tell(worker, control.TellBeats())

    def _source_homes(self) -> list[WorkerIndex]:
        return list(dict.fromkeys(self._homes[task] for task in self._sources))

    def _all_sources(self, have: Callable[[control.Beat], bool]) -> bool:
        beats = [self._tasks[task].beat for task in self._sources]
        return all(beat is not None and have(beat) for beat in beats)

    def _wait_s(self) -> float:
        due = [w.start_due_s for w in self._workers.values() if w.start_due_s is not None]
        return min([LOOK_EVERY_S, *(max(0.0, due_s - self._clock()) for due_s in due)])

    def _listen(self, timeout_s: float) -> None:
        """Hear what workers say; the deaths last, so that last words count."""
        pipes: dict[Any, WorkerIndex] = {}
        sentinels: dict[Any, WorkerIndex] = {}
        for worker, watched in self._workers.items():
            process = watched.process
            if process is not None:
                if process.pipe is not None and not process.pipe.closed:
                    pipes[process.pipe] = worker
                if process.sentinel is not None:
                    sentinels[process.sentinel] = worker
        ready = self._wait([*pipes, *sentinels, self._wake_read], timeout_s)
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        for found in ready:
            if found in pipes:
                self._hear(self._workers[pipes[found]])
        for found in ready:
            if found in sentinels:
                self._mourn(sentinels[found])

    def _hear(self, watched: _Watched) -> None:
        process = watched.process
        while process is not None and (word := _next_word(process.pipe)) is not None:
            self._take_word(watched, word)

    def _take_word(self, watched: _Watched, word: Any) -> None:
        if isinstance(word, control.Beats):
            self._take_beats(watched, word.beats)
        elif isinstance(word, control.Hello):
            watched.greeted = True
            watched.changed_s = self._clock()
            self._carry_out(self._recovery.started(word.worker, word.endpoint))
            self._tell_again(word.worker)
        elif isinstance(word, control.Began):
            watched.began, watched.occupied_with = True, ""
            watched.changed_s = self._clock()
        elif isinstance(word, control.Switched):
            self._carry_out(self._recovery.switched(word.worker, word.version))
        elif isinstance(word, control.Ended):
            self.confirmed = self.confirmed and word.confirmed
            self._end((self._drain if self._drain.started else self._ending).task_ended(word.task))
        elif isinstance(word, control.StopAsked):
            self.stop_cause = self.stop_cause or word
            self._stop_asked = True
        elif isinstance(word, control.Closed):
            watched.closed = word
            self._take_beats(watched, word.beats)
            self.confirmed = self.confirmed and word.confirmed
        elif isinstance(word, control.Failed):
            self._take_failure(watched, word)
        else:
            raise ProtocolError(f"the supervisor got {word!r} from {watched.plan.name}")

    def _take_beats(self, watched: _Watched, beats: tuple[control.Beat, ...]) -> None:
        """A worker gets on if one of its tasks does, or none is in user code, now or at its last beat."""
        idle_before = not watched.occupied_with
        watched.occupied_with = next((beat.occupied_with for beat in beats if beat.occupied_with), "")
        if idle_before or not watched.occupied_with or any(map(self._gets_on, beats)):
            watched.changed_s = self._clock()
        for beat in beats:
            seen = self._tasks[beat.task]
            if not beat.has_frame or seen.beat is None or seen.beat.frames != beat.frames:
                seen.at_frame_since_s = self._clock()
            seen.beat = beat
            if beat.finished and not self._stop_asked and self._recovery.settled:
                self._end_if_finished()
        self._owing.discard(WorkerIndex(watched.plan.index))
        if self._asked_for and not self._owing:
            self._fresh_s = self._clock()
            while self._asked_for:
                self._asked_for.pop().set()

    def _end_if_finished(self) -> None:
        if self._all_sources(lambda beat: beat.finished):
            self._end(self._ending.source_finished())

    def _gets_on(self, beat: control.Beat) -> bool:
        last = self._tasks[beat.task].beat
        return last is None or beat.progress != last.progress

    def _tell_again(self, worker: WorkerIndex) -> None:
        """What the last incarnation was told about reading, the new one must be told too: before it may read."""
        if worker in self._source_homes():
            if self._stop_told:
                self._tell(worker, control.StopReading())
            if self._pause_asked:
                self._tell(worker, control.Pause(True))
        if self._closing:
            self._tell(worker, control.Quit())

    def _end(self, tasks: list[TaskIndex]) -> None:
        self._to_end.update(tasks)
        self._tell_ends()

    def _remember_ends(self) -> None:
        """A new incarnation of a durable task was not told; for one that was, the repeat changes nothing.

        It is told before the replay, from which on its timer may tick: the last incarnation of a task may have said
        that it is drained, and nobody waits for what this one would push.
        """
        if self.plan.options.robust:
            self._to_end.update((self._drain if self._drain.started else self._ending).told)

    def _tell_ends(self) -> None:
        """What ``end`` pushes must reach somebody, and who is to run it must be there: all live and are wired."""
        if self._recovery.settled:
            order = control.Drain if self._drain.started else control.RunEnd
            for task in sorted(self._to_end):
                self._tell_task(task, order(task))
            self._to_end.clear()

    def _take_failure(self, watched: _Watched, failed: control.Failed) -> None:
        """A worker says why it dies. What no restart can mend ends the run."""
        watched.failure = failed
        task = failed.task
        if failed.error is not None:
            error: ConsecutionError = pickle.loads(failed.error)
            error.add_note(f"in {self._name(task)}, {failed.doing}:\n{failed.traceback}")
            raise error
        never_began = self.restarts == 0 and not watched.began
        if never_began or failed.doing in ("end", "close") or task in self._sources:
            raise _worker_error(self._name(task), watched, _last_words(failed))

    # -- deaths ----------------------------------------------------------------------------------

    def _mourn(self, worker: WorkerIndex) -> None:
        """A worker is dead: hear its last words, make sure it is gone, start it again."""
        watched = self._workers[worker]
        process = watched.process
        assert process is not None
        self._hear(watched)
        if not process.join(QUIT_WAIT_S):
            name = watched.plan.name
            raise WorkerError(f"{name}: process {process.pid} cannot be killed", task=name)
        self._hear(watched)
        how, greeted = process.death() + watched.hung + _reason(watched), watched.greeted
        process.pipe.close()
        self._forget_process(watched)
        if watched.closed is not None or self._gone:
            return
        failpoints.passed("supervisor.mourned")
        if not greeted and (error := process.start_error()) is not None:
            raise error
        if not self.plan.options.robust and self._lose(watched, how):
            return
        if self._investigate(watched, process, how):
            watched.start_due_s = self._clock()
        else:
            self._count_death(watched, how)
        self._carry_out(self._recovery.died(worker))

    def _forget_process(self, watched: _Watched) -> None:
        """The counts of an incarnation that is over go into the sums."""
        for task in watched.tasks:
            seen = self._tasks[task]
            seen.before = _sum_counts(seen)
            seen.beat = None if seen.beat is None else replace(seen.beat, **_NOTHING)
        watched.process, watched.greeted, watched.began = None, False, False
        watched.stilled_s, watched.aborted_s, watched.hung = None, None, ""

    # -- poison ----------------------------------------------------------------------------------

    def verdicts(self, node: str) -> tuple[Verdict, ...]:
        """What a new incarnation of a worker that hosts this node must know of poison."""
        return self._suspicion.verdicts(node)

    def _investigate(self, watched: _Watched, process: WorkerProcess, how: str) -> bool:
        """Ask what it died at. Whether that leads to a verdict, which is progress: such a death does not count."""
        in_hand = process.in_hand() if self.plan.options.robust else None
        if in_hand is None or in_hand.task not in self._tasks:
            return False
        node = self.plan.task(in_hand.task).node
        failure = watched.failure
        stack = process.native_stack if failure is None else lambda: failure.traceback
        verdict = self._suspicion.died(node, in_hand, how, stack)
        if verdict is None:
            return False
        self._proclaim(in_hand.task, node, verdict)
        if verdict.item:
            self._count_guilty(in_hand.task, node, how)
        return True

    def _proclaim(self, task: TaskIndex, node: str, verdict: Verdict) -> None:
        """Tell every replica; who is dead just now learns it at its start."""
        what = "leaving out the item it was at" if verdict.item else "trying the items of its frame one by one"
        self._say("supervisor", f"{self._name(task)} died again at the same place ({verdict.how}): {what}")
        for worker in {self._homes[TaskIndex(index)] for index in self.plan.node(node).tasks}:
            self._workers[worker].deaths = 0
            self._tell(worker, control.Judged(node, (verdict,)))

    def _count_guilty(self, task: TaskIndex, node: str, how: str) -> None:
        completed = self._completed()
        before, count = self._guilty.get(node, (completed, 0))
        count = count + 1 if before == completed else 1
        self._guilty[node] = (completed, count)
        if count > MOST_GUILTY:
            raise _worker_error(
                self._name(task),
                self._workers[self._homes[task]],
                f"{count} items in a row took their worker down ({how}): it is node {node!r} that is broken, not its "
                "items; what is open is kept: mend the node and run again with the same state directory",
            )

    # -- restarts --------------------------------------------------------------------------------

    def _count_death(self, watched: _Watched, how: str) -> None:
        completed = self._completed()
        watched.deaths = watched.deaths + 1 if completed == watched.completed_at_death else 1
        watched.completed_at_death = completed
        most = self.plan.options.max_restarts
        if watched.deaths > most:
            raise _worker_error(
                self._name(watched.failure.task) if watched.failure is not None else watched.plan.name,
                watched,
                f"died {watched.deaths} times without progress between ({how}); what is open is kept: mend "
                f"the node and run again with the same state directory (max_restarts={most})",
            )
        delay_s = 0.0 if watched.deaths == 1 else FIRST_BACK_OFF_S * 2.0 ** (watched.deaths - 2)
        watched.start_due_s = self._clock() + min(delay_s, LONGEST_BACK_OFF_S)
        self._say("supervisor", f"{watched.plan.name} died: {how}; starting it again")

    def _lose(self, watched: _Watched, how: str) -> bool:
        """Without a journal a death means: nobody knows what was processed. Returns whether it stays dead."""
        if not self._recovery.replayed_version:
            return False
        self.confirmed = False
        if self._closing:
            self._say("supervisor", f"{watched.plan.name} died while it closed: {how}")
            return True
        read_here = [task for task in watched.tasks if task in self._sources]
        if read_here:
            what = f"the source died ({how}); only robustness='robust' can go on after that"
            raise _worker_error(self._name(read_here[0]), watched, what)
        for task in set(watched.tasks).intersection(self._ending.due):  # not those whose turn comes by that
            self._to_end.discard(task)
            self._to_end.update(self._ending.task_ended(task))  # told once all are back
        return False

    def _start_what_is_due(self) -> None:
        now_s = self._clock()
        for worker, watched in self._workers.items():
            if watched.start_due_s is not None and watched.start_due_s <= now_s:
                watched.start_due_s = None
                self.restarts += 1
                self._start(worker, watched)

    def _look_for_hanging(self) -> None:
        """A worker that has made no progress for too long is killed; first with a signal that shows its stack."""
        now_s = self._clock()
        for watched in self._workers.values():
            process = watched.process
            if process is None or process.sentinel is None:
                continue
            if watched.aborted_s is not None:
                if now_s - watched.aborted_s > ABORT_WAIT_S:
                    process.signal(signal.SIGKILL)
                continue
            if watched.stilled_s is not None:
                if now_s - watched.stilled_s > STILL_WAIT_S:
                    watched.aborted_s = now_s
                    process.signal(signal.SIGABRT)
                continue
            what = watched.occupied_with
            long = what in LONG_STEPS or not watched.began
            limit_s = self.plan.options.timeout_s * (LONG_STEP_STRETCH if long else 1)
            if now_s - watched.changed_s > limit_s:
                what = what or "its loop"
                self._say(
                    "supervisor",
                    f"{watched.plan.name} (pid {process.pid}) has made no progress in {what} for {limit_s:g} s: "
                    "killing it",
                )
                watched.stilled_s = now_s
                watched.hung = f" for hanging, no progress in {what} for {limit_s:g} s"
                self._tell(WorkerIndex(watched.plan.index), control.EndBeats())

    def _tell_of_long_work(self) -> None:
        """Origins take for lost what they hear nothing of; dear items, or an outage, may take many times as long."""
        now_s, long_s = self._clock(), self.plan.options.timeout_s
        if now_s - self._told_of_work_s < long_s or not any(
            seen.beat is not None and seen.beat.has_frame and now_s - seen.at_frame_since_s >= long_s
            for seen in self._tasks.values()
        ):
            return
        self._told_of_work_s = now_s
        for worker in self._workers:
            self._tell(worker, control.AtWork())

    def _give_cores(self) -> None:
        affinities = self._affinities
        if affinities is not None and self.ready and affinities.look(self._clock(), self._pids_of_workers()):
            self._tell_cores()

    def _tell_cores(self) -> None:
        for worker in self._workers:
            self._tell(worker, control.WaitOn(self.core_of(worker)))

    def _pids_of_workers(self) -> dict[WorkerIndex, int]:
        return {worker: w.process.pid for worker, w in self._workers.items() if w.process is not None}

    def core_of(self, worker: WorkerIndex) -> int | None:
        """Where this worker is to wait; None: wherever the system likes."""
        return None if self._affinities is None else self._affinities.cores_of.get(worker)

    # -- orders ----------------------------------------------------------------------------------

    def _carry_out(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, StartWorker):
                watched = self._workers[order.worker]
                if watched.start_due_s is None:
                    self._start(order.worker, watched)
            elif isinstance(order, WireWorkers):
                for worker in order.workers:
                    self._tell(worker, control.Wire(order.version, order.endpoints))
                failpoints.passed("supervisor.wired")
            elif isinstance(order, OrderReplay):
                self._remember_ends()
                self._tell_ends()
                if self._affinities is not None and self._affinities.begin(self._clock(), self._pids_of_workers()):
                    self._tell_cores()
                for worker in self._workers:
                    self._tell(worker, control.Replay(after_death=self.restarts > 0))
                failpoints.passed("supervisor.replayed")

    def _start(self, worker: WorkerIndex, watched: _Watched) -> None:
        watched.incarnation += 1
        self._owing.discard(worker)
        for task in watched.tasks:
            self._tasks[task].beat = self._beat_at_start(task)
        watched.failure = None
        watched.occupied_with = "starting"
        watched.changed_s = self._clock()
        try:
            watched.process = self._launch(worker, watched.incarnation)
        except (OSError, EOFError) as error:
            self._count_death(watched, f"it cannot be started: {text_of(error)}")
        failpoints.passed("supervisor.started_worker")

    def _beat_at_start(self, task: TaskIndex) -> control.Beat | None:
        """Nothing is known of a new worker; the books of a source, which it will read from its journal, are."""
        beat = self._tasks[task].beat
        if task not in self._sources or beat is None or beat.origin is None:
            return None
        self._replayed_before[task] += beat.origin.replayed
        return replace(beat, **_NOTHING, origin=replace(beat.origin, replayed=0))

    def _tell_task(self, task: TaskIndex, order: Any) -> None:
        self._tell(self._homes[task], order)

    def _tell(self, worker: WorkerIndex, order: Any) -> None:
        """A worker that cannot be told is dead; its sentinel will say so."""
        process = self._workers[worker].process
        if process is not None:
            with contextlib.suppress(OSError, ValueError):
                process.pipe.send(order)

    # -- the end ---------------------------------------------------------------------------------

    def _quit_all(self) -> None:
        """Everybody closes; the sources first, so that nobody is sent anything any more."""
        self._closing = True
        for worker in self._workers:
            self._tell(worker, control.Quit())
        limit_s = max(QUIT_WAIT_S, self.plan.options.timeout_s)
        deadline_s = self._clock() + limit_s
        while self._somebody_is_left() and not self._abort_asked:
            self._listen(self._wait_s())
            self._start_what_is_due()
            self._let_go_of_threads()
            deadline_s += self._forgive_standstill()
            self._on_turn()
            if any(w.start_due_s is not None for w in self._workers.values()):
                deadline_s = self._clock() + limit_s
            if self._clock() > deadline_s and self._somebody_is_left():
                raise self._slow_to_close(limit_s)

    def _somebody_is_left(self) -> bool:
        return any(w.process is not None or w.start_due_s is not None for w in self._workers.values())

    def _let_go_of_threads(self) -> None:
        """A thread has no sentinel: its last word is its end."""
        for watched in self._workers.values():
            process = watched.process
            if process is not None and process.sentinel is None and watched.closed is not None:
                process.join(QUIT_WAIT_S)
                process.pipe.close()
                self._forget_process(watched)

    def _slow_to_close(self, limit_s: float) -> WorkerError:
        """Let those that hang show where, and name them."""
        left = [(w.plan.name, w.process) for w in self._workers.values() if w.process is not None]
        for _, process in left:
            process.signal(signal.SIGABRT)
        self._gone = True
        for _, process in left:
            process.join(ABORT_WAIT_S)
        names = ", ".join(name for name, _ in left)
        return WorkerError(
            f"{names}: close() has not returned within {limit_s:g} s; everything is processed, but what close() "
            "had to do may be missing",
            task=left[0][0] if left else "",
        )

    def _kill_all(self) -> None:
        """Kill whatever still runs, and wait until it is gone."""
        self._gone = True
        left = [(w, w.process) for w in self._workers.values() if w.process is not None]
        for _, process in left:
            process.signal(signal.SIGKILL)
        for watched, process in left:
            process.join(QUIT_WAIT_S)
            if not process.pipe.closed:
                process.pipe.close()
            self._forget_process(watched)

    def _name(self, task: TaskIndex) -> str:
        return self.plan.task(task).name


def _next_word(pipe: Any) -> Any:
    """None: there is none just now, or there will be none any more; then the pipe is closed."""
    try:
        return pipe.recv() if pipe.poll() else None
    except (EOFError, OSError):
        pipe.close()
        return None


def _last_words(failed: control.Failed) -> str:
    return failed.message if failed.doing == "start" else f"{failed.doing}() raised {failed.message}"


def _reason(watched: _Watched) -> str:
    """Why a worker has left, where it has said so, to follow how; not at length, for it may do so again and again."""
    if watched.failure is None:
        return ""
    said = _last_words(watched.failure).rstrip(": ")
    return f": {said if len(said) <= LONGEST_REASON else said[: LONGEST_REASON - 3] + '...'}"


def _worker_error(name: str, watched: _Watched, what: str) -> WorkerError:
    """What ends the run; ``name`` is that of the task at fault, or of the worker where nobody knows which it is."""
    text = watched.failure.traceback if watched.failure is not None else ""
    made = WorkerError(f"{name}: {what}", task=name, cause_text=text)
    if text:
        made.add_note(text)
    return made


def _sum_counts(seen: _Seen) -> Counts:
    before, beat, total = seen.before, seen.beat, Counts()
    for name in _SUMMED:
        setattr(total, name, getattr(before, name) + (getattr(beat, name) if beat is not None else 0))
    if beat is not None:
        total.waiting, total.read_share = beat.waiting, beat.read_share
    return total


_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("items_in", "items_out", "failed", "frames", "waiting"), 0),
    **dict.fromkeys(("busy_s", "waited_s", "commit_s"), 0.0),
    "address": None,
}
"""The counts of a beat of which nothing is left."""
_SUMMED = ("items_in", "items_out", "failed", "frames", "busy_s", "waited_s", "commit_s")


__all__ = ["Supervisor"]
