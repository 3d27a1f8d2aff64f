"""The supervisor over scripted histories: its workers are fakes, its time passes only when it waits."""

from __future__ import annotations

import itertools
import pickle
import random
import select
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consecution import Node, Pipeline, Producer
from consecution.errors import BackPressureError, ConsecutionError, SourceError, UsageError, WorkerError
from consecution.protocol.origin import OriginCounts
from consecution.protocol.poison import FrameKey, InHand
from consecution.protocol.values import TaskIndex, WorkerIndex
from consecution.runtime import control, supervisor
from consecution.runtime.supervisor import LONG_STEP_STRETCH, MOST_GUILTY, Supervisor

SOURCE, LEFT, RIGHT, LAST = "producer.0", "a.0", "a.1", "b.0"
TIMEOUT_S = 5.0
LONGEST_S = 1000.0
"""A run that takes longer on the manual clock hangs."""


class Summing(Node):
    """A node that wants to be told of the end."""

    def process(self, item: Any) -> None:
        self.push(item)

    def end(self) -> None:
        self.push(0)


class FakePipe:
    def __init__(self, worker: FakeWorker) -> None:
        self.words: deque[Any] = deque()
        self.closed = False
        self._worker = worker

    def poll(self) -> bool:
        if self.closed:
            raise OSError("handle is closed")
        return bool(self.words) or self._worker.dead

    def recv(self) -> Any:
        if not self.words:
            raise EOFError
        return self.words.popleft()

    def send(self, order: Any) -> None:
        if self.closed or self._worker.dead:
            raise BrokenPipeError
        self._worker.told(order)

    def close(self) -> None:
        self.closed = True


class FakeWorker:
    """One incarnation. ``told`` answers as a real worker would, unless the script has another answer."""

    def __init__(self, world: World, worker: WorkerIndex, incarnation: int, *, in_thread: bool = False) -> None:
        self.world = world
        self.worker = worker
        self.tasks = [TaskIndex(task) for task in world.plan.workers[worker].tasks]
        self.name = world.plan.workers[worker].name
        self.incarnation = incarnation
        self.pipe = FakePipe(self)
        self.pid = 1000 * (int(worker) + 1) + incarnation
        self.sentinel: Any = None if in_thread else object()
        self.dead = False
        self.cause = "exit code 0"
        self.refusal: ConsecutionError | None = None
        self.at: InHand | None = None
        self.signals: list[int] = []
        self.pulse: Callable[[], control.Beats] | None = None
        self.next_beat_s = 0.0
        self.stopping = False

    # -- what the supervisor may ask ---------------------------------------------------------------

    def death(self) -> str:
        return self.cause

    def start_error(self) -> ConsecutionError | None:
        return self.refusal

    def in_hand(self) -> InHand | None:
        return self.at

    def native_stack(self) -> str:
        return "the stack"

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.die("killed by SIGKILL")

    def join(self, timeout_s: float) -> bool:
        if self.sentinel is None and self.pipe.closed:
            self.dead = True
        return self.dead

    # -- what it does ------------------------------------------------------------------------------

    def say(self, word: Any) -> None:
        self.pipe.words.append(word)

    def die(self, cause: str = "killed by SIGKILL") -> None:
        if not self.dead:
            self.dead, self.cause = True, cause

    def told(self, order: Any) -> None:
        self.world.history.append((self.name, self.incarnation, order))
        self.act(type(order).__name__, order)

    def act(self, event: str, order: Any = None) -> None:
        self.world.reaction(self, event)(self, order)

    @property
    def reads(self) -> bool:
        """Whether it hosts the source."""
        return TaskIndex(0) in self.tasks

    def beat(self, progress: int = 0, occupied_with: str = "", **origin: Any) -> control.Beats:
        """That of each task; the source's tells of the origin."""
        counts = OriginCounts(10, origin.pop("completed", 0), 0, 0, origin.pop("replayed", 0), 0)
        beats = [control.Beat(task, (progress,), occupied_with, 1, 1, 0, 0.0) for task in self.tasks]
        if self.reads:
            beats[0] = replace(beats[0], origin=counts, **origin)
        return control.Beats(tuple(beats))

    def hello(self) -> None:
        self.say(control.Hello(self.worker, self.endpoint, self.pid))
        self.pulse = self.beat

    def beats(self, beat: control.Beats) -> None:
        """Say so now, and again four times a second."""
        self.say(beat)
        self.pulse = lambda: beat

    def beat_if_due(self) -> None:
        if not self.dead and self.pulse is not None and self.world.now_s >= self.next_beat_s:
            self.next_beat_s = self.world.now_s + 0.25
            self.say(self.pulse())

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.worker}.{self.incarnation}"

    def fail(self, doing: str, error: bytes | None = None, *, task: TaskIndex | None = None) -> None:
        """Say why, then die: the supervisor finds both at once."""
        self.say(
            control.Failed(self.tasks[0] if task is None else task, doing, "ValueError: no", "Traceback: no", error)
        )
        self.die("exit code 70")


Reaction = Callable[[FakeWorker, Any], None]


def start(worker: FakeWorker, order: Any) -> None:
    worker.hello()
    worker.say(control.Began(worker.worker))


def switch(worker: FakeWorker, order: Any) -> None:
    worker.say(control.Switched(worker.worker, order.version))


def finish(worker: FakeWorker, order: Any) -> None:
    if worker.reads:
        worker.beats(worker.beat(1, completed=10, finished=not worker.stopping, drained=worker.stopping))


def run_end(worker: FakeWorker, order: Any) -> None:
    worker.say(control.Ended(order.task, True))


def drain(worker: FakeWorker, order: Any) -> None:
    worker.stopping = True
    worker.beats(worker.beat(1, completed=5, drained=True))


def close(worker: FakeWorker, order: Any) -> None:
    worker.say(control.Closed(worker.beat(1, completed=10, finished=True).beats, True, ()))
    worker.die("exit code 0")


def nothing(worker: FakeWorker, order: Any) -> None:
    pass


def die(worker: FakeWorker, order: Any) -> None:
    worker.die()


ORDINARY: dict[str, Reaction] = {
    "start": start,
    "Wire": switch,
    "Replay": finish,
    "RunEnd": run_end,
    "StopReading": drain,
    "Judged": nothing,
    "AtWork": nothing,
    "TellBeats": nothing,
    "EndBeats": nothing,
    "WaitOn": nothing,
    "Quit": close,
}


@dataclass
class World:
    """The workers, the clock and the script: (task, event) or (task, incarnation, event) → reaction."""

    robustness: str = "robust"
    node: Any = Node
    first_node: Any = Node
    script: dict[Any, Reaction] = field(default_factory=dict)
    max_restarts: int = 5
    launch_errors: list[Exception] = field(default_factory=list)
    in_thread: bool = False
    workers: Any = "per-task"
    affinities: Any = None

    def __post_init__(self) -> None:
        graph = Pipeline(Producer([1]) | self.first_node("a") * 2 | self.node("b"))
        self.plan = graph.plan(
            mode="process",
            robustness=self.robustness,
            timeout_s=TIMEOUT_S,
            max_restarts=self.max_restarts,
            workers=self.workers,
        )
        self.now_s = 0.0
        self.history: list[Any] = []
        self.said: list[str] = []
        self.workers: list[FakeWorker] = []
        self._planned: list[tuple[float, Callable[[], None]]] = []
        self.supervisor = Supervisor(
            self.plan,
            self._launch,
            lambda mark, text: self.said.append(text),
            clock=lambda: self.now_s,
            wait=self._wait,
            affinities=self.affinities,
        )

    def _launch(self, index: WorkerIndex, incarnation: int) -> FakeWorker:
        self.history.append((self.plan.workers[index].name, incarnation, "launched"))
        if self.launch_errors:
            raise self.launch_errors.pop()
        old = [w for w in self.workers if w.worker == index]
        assert all(w.dead for w in old), "two incarnations at a time"
        worker = FakeWorker(self, index, incarnation, in_thread=self.in_thread and int(index) == 0)
        self.workers.append(worker)
        worker.act("start")
        return worker

    def reaction(self, worker: FakeWorker, event: str) -> Reaction:
        for key in ((worker.name, worker.incarnation, event), (worker.name, event)):
            if key in self.script:
                return self.script[key]
        return ORDINARY[event]

    def _wait(self, objects: list[Any], timeout_s: float) -> list[Any]:
        for due_s, act in [planned for planned in self._planned if planned[0] <= self.now_s]:
            self._planned.remove((due_s, act))
            act()
        for worker in self.workers:
            worker.beat_if_due()
        dead = {w.sentinel for w in self.workers if w.dead}
        ready = [found for found in objects if self._is_ready(found, dead)]
        if not ready:
            self.now_s += timeout_s + 0.001
            assert self.now_s < LONGEST_S, f"the supervisor hangs: {self.history[-10:]}"
        return ready

    @staticmethod
    def _is_ready(found: Any, dead: set[Any]) -> bool:
        if isinstance(found, FakePipe):
            return found.poll()
        if isinstance(found, int):
            return bool(select.select([found], [], [], 0)[0])
        return found in dead

    # -- for tests ---------------------------------------------------------------------------------

    def at(self, due_s: float, act: Callable[[], None]) -> None:
        self._planned.append((due_s, act))

    def run(self) -> Supervisor:
        self.supervisor.run()
        assert all(w.dead or w.sentinel is None for w in self.workers), "a worker was left behind"
        return self.supervisor

    def newest(self, name: str) -> FakeWorker:
        return next(w for w in reversed(self.workers) if w.name == name)

    def launched(self, name: str) -> int:
        return sum(event == (name, incarnation, "launched") for event in self.history for incarnation in [event[1]])

    def orders(self, kind: type) -> list[tuple[str, int]]:
        return [(name, incarnation) for name, incarnation, order in self.history if isinstance(order, kind)]


# -- the start -----------------------------------------------------------------------------------


def test_workers_start_in_the_order_of_the_plan_and_are_wired_once_all_are_there() -> None:
    world = World()

    world.run()

    kinds = [order if isinstance(order, str) else type(order).__name__ for _, _, order in world.history]
    assert kinds == ["launched"] * 4 + ["Wire"] * 4 + ["Replay"] * 4 + ["Quit"] * 4
    assert [name for name, _, order in world.history if order == "launched"] == [SOURCE, LEFT, RIGHT, LAST]


def test_everybody_is_told_all_endpoints() -> None:
    world = World()

    world.run()

    wires = [order for _, _, order in world.history if isinstance(order, control.Wire)]
    assert all(wire.endpoints == {w.worker: w.endpoint for w in world.workers} for wire in wires)


def test_nothing_is_replayed_before_the_slowest_has_switched() -> None:
    world = World(script={(LAST, "Wire"): nothing})
    seen: list[int] = []

    def release() -> None:
        seen.append(len(world.orders(control.Replay)))
        world.newest(LAST).say(control.Switched(world.newest(LAST).worker, 1))

    world.at(3.0, release)

    world.run()

    assert seen == [0]
    assert len(world.orders(control.Replay)) == 4


def test_an_answer_to_an_older_wiring_does_not_count() -> None:
    world = World(script={(SOURCE, "Wire"): nothing})
    seen: list[int] = []

    def answer(version: int) -> Callable[[], None]:
        return lambda: world.newest(SOURCE).say(control.Switched(WorkerIndex(0), version))

    world.at(0.5, lambda: world.newest(LAST).die())
    world.at(1.0, answer(1))
    world.at(2.0, lambda: seen.append(len(world.orders(control.Replay))))
    world.at(3.0, answer(2))

    world.run()

    assert seen == [0]
    assert len(world.orders(control.Replay)) == 4


# -- the end -------------------------------------------------------------------------------------


def test_the_source_quits_first() -> None:
    world = World()

    supervisor = world.run()

    assert world.orders(control.Quit)[0] == (SOURCE, 1)
    assert (supervisor.stopped, supervisor.confirmed, supervisor.restarts) == (False, True, 0)


def test_nodes_end_after_the_source_has_finished() -> None:
    world = World(robustness="confirm", node=Summing)

    world.run()

    assert world.orders(control.RunEnd) == [(LAST, 1)]


def test_what_was_not_confirmed_at_the_end_is_not_confirmed() -> None:
    unsure: Reaction = lambda worker, order: worker.say(control.Ended(order.task, False))  # noqa: E731
    world = World(robustness="confirm", node=Summing, script={(LAST, "RunEnd"): unsure})

    assert not world.run().confirmed


def test_counts_of_all_incarnations_add_up() -> None:
    world = World(
        script={(LEFT, 1, "Replay"): lambda w, order: (w.say(w.beat()), w.die()), (SOURCE, 1, "Replay"): nothing}
    )
    world.at(2.0, lambda: finish(world.newest(SOURCE), None))

    supervisor = world.run()

    assert supervisor.counts()[TaskIndex(1)].items_in == 2
    assert supervisor.counts()[TaskIndex(3)].items_in == 1


def test_a_thread_is_let_go_after_its_last_word() -> None:
    world = World(in_thread=True)

    supervisor = world.run()

    assert not supervisor.stopped
    assert world.newest(SOURCE).pipe.closed


# -- deaths --------------------------------------------------------------------------------------

MOMENTS = {
    "before hello": "start",
    "between hello and began": "hello",
    "instead of switching": "Wire",
    "having switched": "Switched",
    "when it replays": "Replay",
    "instead of closing": "Quit",
}


def dying(moment: str) -> dict[str, Reaction]:
    if moment == "between hello and began":
        return {"start": lambda worker, order: (worker.hello(), worker.die())}  # type: ignore[dict-item]
    if moment == "having switched":
        return {"Wire": lambda worker, order: (switch(worker, order), worker.die())}  # type: ignore[dict-item]
    return {MOMENTS[moment]: die}


@pytest.mark.parametrize("names", [(LEFT,), (SOURCE,), (LAST,), (LEFT, RIGHT), (SOURCE, LAST)], ids=" and ".join)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_death_at_any_moment_is_made_up_for(moment: str, names: tuple[str, ...]) -> None:
    world = World(script={(name, 1, event): act for name in names for event, act in dying(moment).items()})

    supervisor = world.run()

    assert supervisor.restarts == len(names)
    assert {w.name for w in world.workers if w.incarnation == 2} == set(names)
    assert (supervisor.confirmed, supervisor.stopped) == (True, False)
    assert_replayed_only_after_all_switched(world)


def test_a_worker_that_has_closed_may_die_as_it_likes() -> None:
    def close_badly(worker: FakeWorker, order: Any) -> None:
        close(worker, order)
        worker.cause = "killed by SIGSEGV"

    world = World(script={(LAST, "Quit"): close_badly})

    assert world.run().restarts == 0


def test_a_death_while_another_waits_for_its_next_start() -> None:
    world = World(script={(LEFT, 1, "start"): die, (LEFT, 2, "start"): die, (LEFT, 3, "start"): die})
    world.at(0.05, lambda: world.newest(RIGHT).die())

    supervisor = world.run()

    assert supervisor.restarts == 4
    assert_replayed_only_after_all_switched(world)


def test_the_last_words_of_the_dead_count() -> None:
    def finish_and_die(worker: FakeWorker, order: Any) -> None:
        finish(worker, order)
        worker.die()

    world = World(script={(SOURCE, 1, "Replay"): finish_and_die, (SOURCE, 2, "Replay"): nothing})

    supervisor = world.run()

    assert supervisor.books().total.completed == 10
    assert not supervisor.stopped


def test_a_restarted_worker_gets_the_new_endpoints_and_peers_do_too() -> None:
    world = World(script={(RIGHT, 1, "Wire"): die})

    world.run()

    wires = [order for name, _, order in world.history if name == LAST and isinstance(order, control.Wire)]
    assert [wire.endpoints[WorkerIndex(2)] for wire in wires] == ["ipc://2.1", "ipc://2.2"]


def test_replayed_batches_add_up_over_the_lives_of_the_source() -> None:
    def replay_three(worker: FakeWorker, order: Any) -> None:
        worker.say(worker.beat(1, completed=1, replayed=3))
        if worker.incarnation == 1:
            worker.die()
        else:
            worker.say(worker.beat(2, completed=10, replayed=3, finished=True))

    closing: Reaction = lambda w, order: (  # type: ignore[assignment]  # noqa: E731
        w.say(control.Closed(w.beat(2, replayed=3).beats, True, ())),
        w.die(),
    )
    world = World(script={(SOURCE, "Replay"): replay_three, (SOURCE, "Quit"): closing})

    assert world.run().books().total.replayed == 6


# -- deaths without a journal --------------------------------------------------------------------


def test_without_a_journal_a_death_is_not_confirmed() -> None:
    world = World(robustness="confirm", script={(LEFT, 1, "Replay"): die, (SOURCE, 1, "Replay"): nothing})
    world.at(2.0, lambda: finish(world.newest(SOURCE), None))

    supervisor = world.run()

    assert (supervisor.confirmed, supervisor.restarts) == (False, 1)
    assert all(order.after_death for _, _, order in world.history[-8:] if isinstance(order, control.Replay))


def test_without_a_journal_the_death_of_the_source_ends_the_run() -> None:
    world = World(robustness="confirm", script={(SOURCE, 1, "Replay"): die})

    with pytest.raises(WorkerError, match=r"producer\.0: the source died \(killed by SIGKILL\).*robust"):
        world.run()

    assert all(w.dead for w in world.workers)


@pytest.mark.parametrize("name", [SOURCE, LEFT])
def test_without_a_journal_a_death_before_anything_was_sent_is_harmless(name: str) -> None:
    world = World(robustness="confirm", script={(name, 1, "start"): die})

    supervisor = world.run()

    assert (supervisor.confirmed, supervisor.restarts) == (True, 1)


def test_without_a_journal_who_dies_while_it_ends_has_ended() -> None:
    world = World(robustness="confirm", node=Summing, script={(LAST, 1, "RunEnd"): die})

    supervisor = world.run()

    assert (supervisor.confirmed, supervisor.stopped) == (False, False)


def test_nodes_end_when_everybody_is_back_and_wired() -> None:
    world = World(robustness="confirm", node=Summing, script={(LAST, 1, "Replay"): die, (SOURCE, "Replay"): nothing})

    def finish_first(worker: FakeWorker, order: Any) -> None:
        finish(world.newest(SOURCE), None)
        start(worker, order)

    world.script[LAST, 2, "start"] = finish_first

    world.run()

    told = [type(order).__name__ for name, incarnation, order in world.history if (name, incarnation) == (LAST, 2)]
    assert told == ["str", "Wire", "Replay", "RunEnd", "Quit"]


def test_who_is_dead_when_its_turn_to_end_comes_ends_when_it_is_back() -> None:
    world = World(robustness="confirm", first_node=Summing, node=Summing)
    down: list[bool] = []

    def last_dies(worker: FakeWorker, order: Any) -> None:
        world.newest(LAST).die()
        world.at(world.now_s + 0.15, lambda: (down.append(world.newest(LAST).dead), run_end(worker, order)))  # type: ignore

    world.script |= {(LEFT, 1, "RunEnd"): last_dies, (LAST, 2, "start"): die, (LAST, 3, "start"): die}

    supervisor = world.run()

    assert (down, supervisor.stopped) == ([True], False)
    assert world.orders(control.RunEnd)[-1] == (LAST, 4)


def test_without_a_journal_who_dies_while_it_closes_is_not_started_again() -> None:
    world = World(robustness="confirm", script={(LAST, "Quit"): die})

    supervisor = world.run()

    assert (supervisor.confirmed, supervisor.restarts) == (False, 0)
    assert "b.0 died while it closed: killed by SIGKILL" in world.said


# -- limits --------------------------------------------------------------------------------------


def test_a_worker_that_always_dies_is_given_up_with_its_reason_and_longer_and_longer_waits() -> None:
    times: list[float] = []

    def fail(worker: FakeWorker, order: Any) -> None:
        times.append(world.now_s)
        worker.hello()
        worker.fail("begin") if worker.incarnation > 1 else worker.die()

    world = World(script={(LEFT, "start"): fail}, max_restarts=4)

    with pytest.raises(WorkerError) as caught:
        world.run()

    reason = "exit code 70: begin() raised ValueError: no"
    assert f"a.0: died 5 times without progress between ({reason})" in str(caught.value)
    assert "max_restarts=4" in str(caught.value)
    assert (caught.value.task, caught.value.cause_text) == (LEFT, "Traceback: no")
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.4], abs=0.01)


def die_at(*items: bytes, frames: int = 1) -> Reaction:
    """Die at each replay, with a frame in hand: first at no item, then twice at each of these."""
    script = [(seq, item) for seq in range(frames) for item in (b"", b"", *(i for i in items for _ in range(2)))]

    def die(worker: FakeWorker, order: Any) -> None:
        if script:
            seq, item = script.pop(0)
            worker.at = InHand(worker.tasks[0], FrameKey(TaskIndex(0), seq, (1,)), item)
            worker.die("killed by SIGSEGV")
        else:
            world = worker.world
            world.newest(SOURCE).beats(worker.world.newest(SOURCE).beat(1, completed=10, finished=True))

    return die


QUIET_SOURCE: dict[Any, Reaction] = {(SOURCE, "Replay"): nothing}


@pytest.mark.parametrize("max_restarts", [1, 5])
def test_deaths_that_lead_to_a_verdict_do_not_count(max_restarts: int) -> None:
    items = [bytes((number,)) for number in range(10)]
    world = World(script=QUIET_SOURCE | {(LAST, "Replay"): die_at(*items)}, max_restarts=max_restarts)

    supervisor = world.run()

    assert supervisor.restarts == 2 + 2 * len(items)
    found = supervisor.verdicts("b")
    assert [verdict.item for verdict in found] == [b"", *items]
    assert {(v.how, v.stack) for v in found[1:]} == {("killed by SIGSEGV", "the stack")}


def test_why_a_worker_left_is_said_and_is_what_its_item_is_given_up_with() -> None:
    names = [b"", b"", b"item", b"item"]

    def leave(worker: FakeWorker, order: Any) -> None:
        if names:
            worker.at = InHand(worker.tasks[0], FrameKey(TaskIndex(0), 0, (1,)), names.pop(0))
            worker.fail("on_timer")
        else:
            finish(world.newest(SOURCE), None)

    world = World(script=QUIET_SOURCE | {(LAST, "Replay"): leave})

    found = world.run().verdicts("b")[-1]

    assert (found.how, found.stack) == ("exit code 70: on_timer() raised ValueError: no", "Traceback: no")
    assert "b.0 died: exit code 70: on_timer() raised ValueError: no; starting it again" in world.said


def test_a_death_that_nobody_can_make_up_for_is_said_with_its_reason_too() -> None:
    def leave_once(worker: FakeWorker, order: Any) -> None:
        worker.fail("process") if worker.incarnation == 1 else finish(world.newest(SOURCE), None)

    world = World(robustness="track", script=QUIET_SOURCE | {(LAST, "Replay"): leave_once})
    world.run()

    assert "b.0 died: exit code 70: process() raised ValueError: no; starting it again" in world.said


def test_every_replica_is_told_the_verdict_before_the_replay() -> None:
    deaths = iter([LEFT, RIGHT])
    key = FrameKey(TaskIndex(0), 7, (1,))

    def die_in_turn(worker: FakeWorker, order: Any) -> None:
        if next(deaths, None) is not None:
            victim = world.newest(LEFT if worker.incarnation == 1 else RIGHT)
            victim.at = InHand(victim.tasks[0], key, b"")
            victim.die()
        else:
            finish(world.newest(SOURCE), None)

    world = World(script=QUIET_SOURCE | {(LEFT, "Replay"): die_in_turn})

    supervisor = world.run()

    told = [type(order).__name__ for name, life, order in world.history if (name, life) == (LEFT, 2)]
    assert told[told.index("Judged") :][:3] == ["Judged", "Wire", "Replay"]
    assert world.orders(control.Judged) == [(LEFT, 2)], "the dead one is told by its start, other nodes not at all"
    assert [verdict.frame for verdict in supervisor.verdicts("a")] == [key]
    assert supervisor.verdicts("b") == ()


def test_deaths_in_a_suspect_frame_that_are_no_items_fault_end_the_run() -> None:
    key = InHand(TaskIndex(3), FrameKey(TaskIndex(0), 7, (1,)), b"")

    def die_between(worker: FakeWorker, order: Any) -> None:
        worker.at = key
        worker.die()

    world = World(script=QUIET_SOURCE | {(LAST, "Replay"): die_between}, max_restarts=3)

    with pytest.raises(WorkerError, match="died 4 times without progress"):
        world.run()


def test_a_node_that_dies_at_every_item_is_given_up() -> None:
    items = [b"%d" % number for number in range(MOST_GUILTY + 1)]
    world = World(script=QUIET_SOURCE | {(LAST, "Replay"): die_at(*items)})

    with pytest.raises(WorkerError, match="it is node 'b' that is broken"):
        world.run()


def test_without_a_journal_nobody_asks_what_was_in_hand() -> None:
    def die_once(worker: FakeWorker, order: Any) -> None:
        worker.at = InHand(TaskIndex(3), FrameKey(TaskIndex(0), 7, (1,)), b"")
        worker.die() if worker.incarnation < 4 else finish(world.newest(SOURCE), None)

    world = World(robustness="confirm", script=QUIET_SOURCE | {(LAST, "Replay"): die_once})

    assert world.run().verdicts("b") == ()


def test_progress_between_deaths_forgives_them() -> None:
    def get_on_and_die(worker: FakeWorker, order: Any) -> None:
        source = world.newest(SOURCE)
        source.beats(source.beat(worker.incarnation, completed=worker.incarnation))
        worker.die()

    world = World(
        script={
            (LEFT, "Replay"): get_on_and_die,
            (LEFT, 9, "Replay"): nothing,
            **{(SOURCE, 1, "Replay"): nothing},
        },
        max_restarts=2,
    )
    world.at(30.0, lambda: finish(world.newest(SOURCE), None))

    assert world.run().restarts == 8


def test_a_worker_that_cannot_be_started_is_tried_again() -> None:
    world = World(launch_errors=[OSError("no more processes"), EOFError()])

    supervisor = world.run()

    assert supervisor.restarts == 2
    assert [world.launched(name) for name in (SOURCE, LEFT, RIGHT, LAST)] == [2, 2, 1, 1]


def test_a_worker_that_can_never_be_started_is_given_up() -> None:
    world = World(launch_errors=[OSError("no more processes")] * 100, max_restarts=3)

    with pytest.raises(WorkerError, match=r"producer\.0: died 4 times .*cannot be started: OSError: no more processes"):
        world.run()


def test_a_process_that_cannot_be_killed_ends_the_run() -> None:
    world = World()

    def die_halfway(worker: FakeWorker, order: Any) -> None:
        worker.die()
        worker.join = lambda timeout_s: False  # type: ignore[method-assign]

    world.script[LEFT, "Replay"] = die_halfway

    with pytest.raises(WorkerError, match=r"a\.0: process 2001 cannot be killed"):
        world.run()


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "doing", "match"),
    [
        ("start", "start", r"^b\.0: ValueError: no"),
        ("start", "begin", r"^b\.0: begin\(\) raised ValueError: no"),
        ("RunEnd", "end", r"^b\.0: end\(\) raised ValueError: no"),
        ("Quit", "close", r"^b\.0: close\(\) raised ValueError: no"),
    ],
    ids=["start", "begin", "end", "close"],
)
def test_a_failure_that_no_restart_mends_ends_the_run_and_names_the_task(event: str, doing: str, match: str) -> None:
    world = World(robustness="confirm", node=Summing, script={(LAST, event): lambda worker, order: worker.fail(doing)})

    with pytest.raises(WorkerError, match=match) as caught:
        world.run()

    assert caught.value.cause_text == "Traceback: no"
    assert all(w.dead for w in world.workers)


def test_an_error_of_our_own_is_raised_as_it_is() -> None:
    blob = pickle.dumps(SourceError("the file is shorter"))
    world = World(script={(SOURCE, "start"): lambda worker, order: worker.fail("begin", blob)})

    with pytest.raises(SourceError, match="the file is shorter") as caught:
        world.run()

    assert "in producer.0, begin" in caught.value.__notes__[0]


def test_an_error_that_is_also_an_operating_system_error_is_not_taken_for_a_closed_pipe() -> None:
    blob = pickle.dumps(BackPressureError("full"))
    world = World(script={(LAST, "start"): lambda worker, order: worker.fail("begin", blob)})

    with pytest.raises(BackPressureError, match="full"):
        world.run()


def test_what_makes_every_start_impossible_is_raised_at_once() -> None:
    def refuse(worker: FakeWorker, order: Any) -> None:
        worker.refusal = UsageError("guard your script")
        worker.die("exit code 71")

    world = World(script={(LEFT, "start"): refuse})

    with pytest.raises(UsageError, match="guard your script"):
        world.run()

    assert world.launched(LEFT) == 1


def test_who_has_said_hello_does_not_die_of_its_start_whatever_its_exit_code() -> None:
    def exit_once(worker: FakeWorker, order: Any) -> None:
        worker.refusal = UsageError("guard your script")
        worker.die("exit code 71")

    world = World(script={(LEFT, 1, "Wire"): exit_once})

    supervisor = world.run()

    assert (supervisor.restarts, world.launched(LEFT)) == (1, 2)


def test_begin_that_fails_in_a_later_life_counts_as_a_death() -> None:
    world = World(
        script={(LEFT, 1, "Wire"): die, (LEFT, 2, "start"): lambda w, order: (w.hello(), w.fail("begin"))}  # type: ignore[dict-item]
    )

    assert world.run().restarts == 2


# -- hanging -------------------------------------------------------------------------------------


def occupied(step: str) -> Reaction:
    """In its first life a worker gets nowhere with this; in its second it is idle."""

    def act(worker: FakeWorker, order: Any) -> None:
        start(worker, order)
        worker.beats(worker.beat(7, step if worker.incarnation == 1 else ""))

    return act


def waiting(script: dict[Any, Reaction], until_s: float) -> World:
    """A world whose stream ends at that time."""
    world = World(script={(SOURCE, "Replay"): nothing, **script})
    world.at(until_s, lambda: finish(world.newest(SOURCE), None))
    return world


def test_a_worker_without_progress_shows_its_stack_and_is_killed() -> None:
    world = waiting({(LAST, "start"): occupied("process")}, 12.0)

    supervisor = world.run()

    first = next(w for w in world.workers if w.name == LAST)
    assert first.signals == [signal.SIGABRT, signal.SIGKILL]
    assert world.orders(control.EndBeats) == [(LAST, 1)], "who tells just then how far it is has no stack"
    assert supervisor.restarts == 1
    assert "b.0 (pid 4001) has made no progress in process for 5 s: killing it" in world.said


def test_a_worker_that_is_not_heard_of_any_more_is_killed() -> None:
    """User code may hold the interpreter, or somebody has stopped the process: then not even beats come."""
    world = waiting({}, 12.0)
    world.at(2.0, lambda: setattr(world.newest(LAST), "pulse", None))

    supervisor = world.run()

    assert supervisor.restarts == 1
    assert "b.0 (pid 4001) has made no progress in its loop for 5 s: killing it" in world.said


def at_frame(frames_a_second: float) -> Callable[[FakeWorker], control.Beats]:
    """It gets on, and is done with so many frames a second."""

    def make(worker: FakeWorker) -> control.Beats:
        now_s = worker.world.now_s
        told = worker.beat(int(now_s * 2), "process").beats
        return control.Beats(tuple(replace(beat, frames=int(now_s * frames_a_second)) for beat in told))

    return make


def in_outage(worker: FakeWorker) -> control.Beats:
    """Its sink waits for the world, and tries again now and then."""
    waits = int(worker.world.now_s) % 2 == 0
    told = worker.beat(1, "" if waits else "process").beats
    return control.Beats(tuple(replace(beat, waits=waits) for beat in told))


@pytest.mark.parametrize("pulse", [at_frame(0), in_outage], ids=["at work", "in an outage"])
def test_everybody_is_told_again_and_again_of_a_task_that_gets_on_with_one_frame(
    pulse: Callable[[FakeWorker], control.Beats],
) -> None:
    world = waiting({}, 23.0)
    world.at(1.0, lambda: setattr(world.newest(LAST), "pulse", lambda: pulse(world.newest(LAST))))
    told_s: list[float] = []
    world.script[SOURCE, "AtWork"] = lambda worker, order: told_s.append(world.now_s)

    assert world.run().restarts == 0
    assert [name for name, _ in world.orders(control.AtWork)] == [SOURCE, LEFT, RIGHT, LAST] * 4
    assert all(later_s - earlier_s >= TIMEOUT_S for earlier_s, later_s in itertools.pairwise([0.0, *told_s]))


def test_nobody_is_told_of_a_task_that_is_done_with_a_frame_now_and_then_or_has_none() -> None:
    busy, idle = waiting({}, 23.0), waiting({}, 23.0)
    busy.at(1.0, lambda: setattr(busy.newest(LAST), "pulse", lambda: at_frame(0.25)(busy.newest(LAST))))

    for world in (busy, idle):
        assert world.run().restarts == 0
        assert world.orders(control.AtWork) == []


def test_whoever_asks_how_far_a_run_is_has_everybody_say_so() -> None:
    world = waiting({}, 10.0)
    world.at(2.0, world.supervisor.freshen)

    world.run()

    assert [name for name, _ in world.orders(control.TellBeats)] == [SOURCE, LEFT, RIGHT, LAST]


def test_nobody_is_asked_again_who_has_not_answered() -> None:
    """The pipe of a worker that is stopped would fill up, and the supervisor wait for it."""
    world = waiting({}, 10.0)
    world.at(2.0, lambda: setattr(world.newest(LAST), "pulse", None))
    for since_s in (3.0, 4.0, 5.0):
        world.at(since_s, world.supervisor.freshen)

    world.run()

    assert [name for name, _ in world.orders(control.TellBeats)] == [
        SOURCE,
        LEFT,
        RIGHT,
        LAST,
        *[SOURCE, LEFT, RIGHT] * 2,
    ]


def test_a_run_that_has_not_begun_or_is_over_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FRESH_WAIT_S", 3600.0)
    world = World()

    world.supervisor.freshen()
    world.run()
    world.supervisor.freshen()

    assert world.orders(control.TellBeats) == []


class FakeAffinities:
    """Has decided already what it says at the begin, and when it is looked at for the third time."""

    def __init__(self, at_begin: dict[int, int], later: dict[int, int]) -> None:
        self.cores_of: dict[int, int] = {}
        self.looks = 0
        self.pids: list[Any] = []
        self._at_begin, self._later = at_begin, later

    def begin(self, now_s: float, pids: Any) -> bool:
        self.cores_of = self._at_begin
        self.pids.append(pids)
        return bool(self._at_begin)

    def look(self, now_s: float, pids: Any) -> bool:
        self.looks += 1
        if self.looks == 3:
            self.cores_of = self._later
        return self.looks == 3


def cores_told(world: World) -> list[tuple[str, int | None]]:
    return [(name, order.core) for name, _, order in world.history if isinstance(order, control.WaitOn)]


def test_workers_are_told_their_cores_before_anything_is_read_and_whenever_that_changes() -> None:
    affinities = FakeAffinities({0: 0, 3: 1}, {1: 1})
    world = World(affinities=affinities, script={(SOURCE, "Replay"): nothing})
    world.at(2.0, lambda: finish(world.newest(SOURCE), None))

    world.run()

    told = [(SOURCE, 0), (LEFT, None), (RIGHT, None), (LAST, 1), (SOURCE, None), (LEFT, 1), (RIGHT, None), (LAST, None)]
    assert cores_told(world) == told
    kinds = [type(order).__name__ for name, _, order in world.history if name == SOURCE]
    assert kinds.index("WaitOn") < kinds.index("Replay")
    assert affinities.pids == [{WorkerIndex(n): 1000 * (n + 1) + 1 for n in range(4)}]


def test_nobody_is_told_of_cores_where_nothing_is_decided() -> None:
    with_one, without = World(affinities=FakeAffinities({}, {})), World()
    with_one.run()
    without.run()

    assert (cores_told(with_one), cores_told(without)) == ([], [])


def test_whoever_is_started_again_is_told_where_it_waits_by_whoever_starts_it() -> None:
    world = World(affinities=FakeAffinities({3: 1}, {3: 1}), script={(LAST, 1, "Replay"): die})
    seen: list[int | None] = []
    world.script[(LAST, 2, "start")] = lambda w, order: (
        seen.append(world.supervisor.core_of(w.worker)),
        start(w, order),
    )

    world.run()

    assert seen == [1]
    assert world.supervisor.core_of(WorkerIndex(0)) is None


def test_an_idle_worker_is_left_alone_for_hours() -> None:
    assert waiting({}, 900.0).run().restarts == 0


def test_a_slow_worker_is_left_alone_as_long_as_it_gets_on() -> None:
    def begin_slowly(worker: FakeWorker, order: Any) -> None:
        start(worker, order)
        worker.pulse = lambda: worker.beat(int(worker.world.now_s / 4), "process")

    assert waiting({(LAST, "start"): begin_slowly}, 100.0).run().restarts == 0


@pytest.mark.parametrize("step", ["begin", "end", "close"])
def test_what_is_done_once_may_take_longer(step: str) -> None:
    limit_s = TIMEOUT_S * LONG_STEP_STRETCH
    world = waiting({(LAST, "start"): occupied(step)}, limit_s + 20.0)

    supervisor = world.run()

    assert supervisor.restarts == 1
    assert f"b.0 (pid 4001) has made no progress in {step} for {limit_s:g} s: killing it" in world.said


def test_a_worker_that_never_says_hello_is_killed_in_the_end() -> None:
    world = World(script={(LAST, 1, "start"): nothing})

    supervisor = world.run()

    assert supervisor.restarts == 1
    assert world.now_s >= TIMEOUT_S * LONG_STEP_STRETCH


def test_a_job_that_was_stopped_and_goes_on_kills_nobody() -> None:
    """Ctrl-Z stops supervisor and workers alike, and the supervisor may be the first to go on."""
    world = waiting({}, 110.0)

    def stop_the_job() -> None:
        world.now_s += 100.0
        for worker in world.workers:
            worker.next_beat_s = world.now_s + 1.0

    world.at(2.0, stop_the_job)

    assert world.run().restarts == 0
    assert world.now_s > 100.0


# -- stop and abort ------------------------------------------------------------------------------


def test_a_stop_drains_and_runs_no_end() -> None:
    world = World(robustness="confirm", node=Summing, script={(SOURCE, "Replay"): nothing})
    world.at(1.0, world.supervisor.stop)

    supervisor = world.run()

    assert supervisor.stopped
    assert world.orders(control.StopReading) == [(SOURCE, 1)]
    assert world.orders(control.RunEnd) == []
    assert len(world.orders(control.Quit)) == 4


def test_a_stop_before_the_start_waits_until_all_are_there() -> None:
    world = World(script={(SOURCE, "Replay"): nothing})
    world.supervisor.stop()

    supervisor = world.run()

    assert supervisor.stopped
    kinds = [type(order) for name, _, order in world.history if name == SOURCE]
    assert kinds == [str, control.Wire, control.Replay, control.StopReading, control.Quit]


def test_a_source_that_dies_while_it_drains_is_told_again_to_stop() -> None:
    world = World(script={(SOURCE, "Replay"): nothing, (SOURCE, 1, "StopReading"): die})
    world.at(1.0, world.supervisor.stop)

    supervisor = world.run()

    assert world.orders(control.StopReading) == [(SOURCE, 1), (SOURCE, 2)]
    assert (supervisor.stopped, supervisor.restarts) == (True, 1)
    told = [type(order) for name, incarnation, order in world.history if (name, incarnation) == (SOURCE, 2)]
    assert control.Replay not in told[: told.index(control.StopReading)], "it could read between the two"


def test_a_worker_that_dies_while_the_source_drains_comes_back() -> None:
    world = World(script={(SOURCE, "Replay"): nothing, (SOURCE, "StopReading"): nothing})
    world.at(1.0, world.supervisor.stop)
    world.at(2.0, lambda: world.newest(LAST).die())
    world.at(4.0, lambda: drain(world.newest(SOURCE), None))

    supervisor = world.run()

    assert (supervisor.stopped, supervisor.restarts) == (True, 1)


def test_a_task_that_dies_after_it_has_drained_is_told_before_its_timer_may_tick() -> None:
    def kill_left_once(worker: FakeWorker, order: Any) -> None:
        left = world.newest(LEFT)
        if left.incarnation == 1:
            left.die()
        else:
            run_end(worker, order)

    world = World(
        first_node=Summing,
        node=Summing,
        script={
            (SOURCE, "Replay"): nothing,
            (LEFT, "Drain"): run_end,
            (RIGHT, "Drain"): run_end,
            (LAST, "Drain"): kill_left_once,
        },
    )
    world.at(1.0, world.supervisor.stop)

    supervisor = world.run()

    assert (supervisor.stopped, supervisor.restarts) == (True, 1)
    told = [type(order).__name__ for name, incarnation, order in world.history if (name, incarnation) == (LEFT, 2)]
    assert told == ["str", "Wire", "Drain", "Replay", "Quit"]


def test_a_stop_while_nodes_end_lets_them_end() -> None:
    world = World(robustness="confirm", node=Summing, script={(LAST, "RunEnd"): nothing})
    world.at(1.0, world.supervisor.stop)
    world.at(3.0, lambda: world.newest(LAST).say(control.Ended(world.newest(LAST).tasks[0], True)))

    supervisor = world.run()

    assert (supervisor.stopped, supervisor.confirmed) == (False, True)


@pytest.mark.parametrize("event", ["start", "Wire", "Replay", "Quit"])
def test_an_abort_kills_everybody_at_once(event: str) -> None:
    world = World(script={(LAST, event): nothing, (SOURCE, "Replay"): nothing if event != "Quit" else finish})
    world.at(1.0, world.supervisor.abort)

    supervisor = world.run()

    assert world.now_s < 2.0
    assert supervisor.stopped == (event != "Quit")
    assert world.newest(LAST).signals == [signal.SIGKILL]


def test_what_was_counted_before_an_abort_is_kept() -> None:
    world = World(script={(SOURCE, "Replay"): nothing, (LEFT, "Replay"): lambda w, order: w.say(w.beat())})
    world.at(1.0, world.supervisor.abort)

    assert world.run().counts()[TaskIndex(1)].items_in == 1


def test_stop_and_abort_after_the_end_touch_nothing() -> None:
    world = World()
    supervisor = world.run()

    supervisor.stop()
    supervisor.abort()

    assert supervisor.state == "stopping"


def test_a_close_that_hangs_is_an_error_that_names_it() -> None:
    world = World(script={(LAST, "Quit"): nothing})

    with pytest.raises(WorkerError, match=r"b\.0: close\(\) has not returned within 10 s") as caught:
        world.run()

    assert caught.value.task == LAST
    assert world.newest(LAST).signals == [signal.SIGABRT, signal.SIGKILL]


def test_a_job_that_is_stopped_while_it_closes_has_time_left_to_close() -> None:
    world = World(script={(LAST, "Quit"): nothing})
    world.at(1.0, lambda: setattr(world, "now_s", world.now_s + 100.0))
    world.at(105.0, lambda: close(world.newest(LAST), None))

    assert not world.run().stopped


def test_who_waits_for_its_next_start_does_not_hang_in_close() -> None:
    world = World(script={(LAST, life, "Quit"): die for life in range(1, 10)}, max_restarts=20)

    assert world.run().restarts == 9
    assert world.now_s > 10.0


def test_only_processes_are_listed() -> None:
    world = World(in_thread=True, script={(SOURCE, "Replay"): nothing})
    seen: list[dict[str, int]] = []
    world.at(1.0, lambda: seen.append(world.supervisor.pids()))
    world.at(2.0, world.supervisor.abort)

    world.run()

    assert seen == [{LEFT: 2001, RIGHT: 3001, LAST: 4001}]
    assert world.supervisor.pids() == {}


# -- workers of several tasks --------------------------------------------------------------------

FIRST, SECOND = "worker.0", "worker.1"
"""The first hosts producer.0 and a.0, the second a.1 and b.0."""


def shared(**given: Any) -> World:
    world = World(workers=2, **given)
    crews = {w.name: [world.plan.task(task).name for task in w.tasks] for w in world.plan.workers}
    assert crews == {FIRST: [SOURCE, LEFT], SECOND: [RIGHT, LAST]}
    return world


def tasks_told(world: World, kind: type) -> list[tuple[str, int, str]]:
    """Who was told so, in which life, and of which task."""
    return [
        (name, incarnation, world.plan.task(order.task).name)
        for name, incarnation, order in world.history
        if isinstance(order, kind)
    ]


@pytest.mark.parametrize("names", [(FIRST,), (SECOND,), (FIRST, SECOND)], ids=" and ".join)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_death_of_a_shared_worker_at_any_moment_is_made_up_for_once(moment: str, names: tuple[str, ...]) -> None:
    world = shared(script={(name, 1, event): act for name in names for event, act in dying(moment).items()})

    supervisor = world.run()

    assert supervisor.restarts == len(names)
    assert [world.launched(name) for name in (FIRST, SECOND)] == [1 + (name in names) for name in (FIRST, SECOND)]
    assert (supervisor.confirmed, supervisor.stopped) == (True, False)
    assert_replayed_only_after_all_switched(world)


def test_all_tasks_of_a_worker_have_its_process_and_counts_of_their_own() -> None:
    world = shared(
        script={(SECOND, 1, "Replay"): lambda w, order: (w.say(w.beat()), w.die()), (FIRST, "Replay"): nothing}
    )
    seen: list[dict[str, int]] = []
    world.at(2.0, lambda: (seen.append(world.supervisor.pids()), finish(world.newest(FIRST), None)))  # type: ignore

    supervisor = world.run()

    assert seen == [{SOURCE: 1001, LEFT: 1001, RIGHT: 2002, LAST: 2002}]
    assert [supervisor.counts()[TaskIndex(task)].items_in for task in range(4)] == [1, 1, 2, 2]


def test_every_task_of_a_shared_worker_ends_once_in_the_order_of_the_graph() -> None:
    world = shared(robustness="confirm", first_node=Summing, node=Summing)

    assert world.run().confirmed
    assert tasks_told(world, control.RunEnd) == [(FIRST, 1, LEFT), (SECOND, 1, RIGHT), (SECOND, 1, LAST)]


def test_without_a_journal_a_shared_worker_that_dies_at_one_end_still_has_the_other_to_run() -> None:
    world = shared(robustness="confirm", first_node=Summing, node=Summing, script={(SECOND, 1, "RunEnd"): die})

    supervisor = world.run()

    assert (supervisor.confirmed, supervisor.stopped, supervisor.restarts) == (False, False, 1)
    assert tasks_told(world, control.RunEnd) == [(FIRST, 1, LEFT), (SECOND, 1, RIGHT), (SECOND, 2, LAST)]


def test_with_a_journal_every_task_that_was_told_to_end_is_told_again() -> None:
    def die_at_the_last(worker: FakeWorker, order: Any) -> None:
        worker.die() if worker.world.plan.task(order.task).name == LAST else run_end(worker, order)

    world = shared(first_node=Summing, node=Summing, script={(SECOND, 1, "RunEnd"): die_at_the_last})

    supervisor = world.run()

    told = tasks_told(world, control.RunEnd)
    assert told[:3] == [(FIRST, 1, LEFT), (SECOND, 1, RIGHT), (SECOND, 1, LAST)]
    assert told[3:] == [(FIRST, 1, LEFT), (SECOND, 2, RIGHT), (SECOND, 2, LAST)]
    assert (supervisor.confirmed, supervisor.stopped) == (True, False)


def test_without_a_journal_the_death_of_the_source_s_worker_ends_the_run_and_names_the_source() -> None:
    world = shared(robustness="confirm", script={(FIRST, 1, "Replay"): die})

    with pytest.raises(WorkerError, match=r"^producer\.0: the source died \(killed by SIGKILL\).*robust"):
        world.run()


def test_a_failure_names_the_task_at_fault_and_not_its_worker() -> None:
    def fail(worker: FakeWorker, order: Any) -> None:
        worker.fail("begin", task=TaskIndex(3))

    with pytest.raises(WorkerError, match=r"^b\.0: begin\(\) raised ValueError: no") as caught:
        shared(script={(SECOND, "start"): fail}).run()

    assert caught.value.task == LAST


def test_a_shared_worker_that_always_dies_without_a_word_is_given_up_by_its_own_name() -> None:
    world = shared(script={(SECOND, "Wire"): die}, max_restarts=3)

    with pytest.raises(WorkerError, match=r"^worker\.1: died 4 times without progress between \(killed by SIGKILL\)"):
        world.run()


def beat_of_each(*beats: tuple[int, str]) -> Callable[[FakeWorker], control.Beats]:
    """(progress, occupied with) of each task of a worker."""

    def make(worker: FakeWorker) -> control.Beats:
        plain = worker.beat().beats
        told = zip(plain, beats, strict=True)
        return control.Beats(tuple(replace(b, progress=(n,), occupied_with=what) for b, (n, what) in told))

    return make


def test_a_shared_worker_hangs_if_the_task_that_is_at_work_does() -> None:
    hanging = beat_of_each((7, ""), (3, "process"))
    world = shared(script={(FIRST, "Replay"): nothing})
    world.at(1.0, lambda: setattr(world.newest(SECOND), "pulse", lambda: hanging(world.newest(SECOND))))
    world.at(30.0, lambda: finish(world.newest(FIRST), None))

    supervisor = world.run()

    assert supervisor.restarts == 1
    assert "worker.1 (pid 2001) has made no progress in process for 5 s: killing it" in world.said
    assert [w.signals for w in world.workers if w.name == SECOND] == [[signal.SIGABRT, signal.SIGKILL], []]


def test_a_shared_worker_gets_on_if_any_of_its_tasks_does() -> None:
    world = shared(script={(FIRST, "Replay"): nothing})

    def pulse() -> control.Beats:
        return beat_of_each((int(world.now_s / 4), ""), (3, "process"))(world.newest(SECOND))

    world.at(1.0, lambda: setattr(world.newest(SECOND), "pulse", pulse))
    world.at(60.0, lambda: finish(world.newest(FIRST), None))

    assert world.run().restarts == 0


def test_a_verdict_goes_to_the_workers_that_host_the_node_and_names_it() -> None:
    key = FrameKey(TaskIndex(0), 7, (1,))

    def die_of_it(worker: FakeWorker, order: Any) -> None:
        if worker.incarnation <= 2:
            worker.at = InHand(TaskIndex(2), key, b"")
            worker.die("killed by SIGSEGV")
        else:
            finish(world.newest(FIRST), None)

    world = shared(script={(FIRST, "Replay"): nothing, (SECOND, "Replay"): die_of_it})

    supervisor = world.run()

    judged = [(name, life, order.node) for name, life, order in world.history if isinstance(order, control.Judged)]
    assert judged == [(FIRST, 1, "a")]
    assert [verdict.frame for verdict in supervisor.verdicts("a")] == [key]
    assert supervisor.verdicts("b") == supervisor.verdicts("producer") == ()
    assert any(text.startswith("a.1 died again at the same place") for text in world.said)


def test_a_task_in_hand_that_the_plan_does_not_have_blames_nobody() -> None:
    def die_badly(worker: FakeWorker, order: Any) -> None:
        worker.at = InHand(TaskIndex(99), FrameKey(TaskIndex(0), 7, (1,)), b"")
        worker.die() if worker.incarnation <= 2 else finish(world.newest(FIRST), None)

    world = shared(script={(FIRST, "Replay"): nothing, (SECOND, "Replay"): die_badly})

    assert world.run().restarts == 2


def test_the_worker_of_the_source_is_told_again_to_stop_whatever_else_it_hosts() -> None:
    world = shared(script={(FIRST, "Replay"): nothing, (FIRST, 1, "StopReading"): die})
    world.at(1.0, world.supervisor.stop)

    supervisor = world.run()

    assert world.orders(control.StopReading) == [(FIRST, 1), (FIRST, 2)]
    assert (supervisor.stopped, supervisor.restarts) == (True, 1)


# -- any history ---------------------------------------------------------------------------------


def assert_replayed_only_after_all_switched(world: World) -> None:
    """At every replay all workers live, and have been wired to the newest endpoints of all."""
    newest: dict[str, int] = {}
    wired: dict[str, dict[Any, str]] = {}
    for name, incarnation, order in world.history:
        if order == "launched":
            newest[name] = incarnation
            wired.pop(name, None)
        elif isinstance(order, control.Wire):
            wired[name] = order.endpoints
        elif isinstance(order, control.Replay):
            now = {WorkerIndex(w.index): f"ipc://{w.index}.{newest[w.name]}" for w in world.plan.workers}
            assert all(wired.get(w.name) == now for w in world.plan.workers)


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_any_history_of_deaths_ends(seed: int) -> None:
    chance = random.Random(seed)
    world = World(max_restarts=100, workers=chance.choice(["per-task", 1, 2, 3]))
    deaths = chance.randrange(12)

    def maybe_die(event: str) -> Reaction:
        def act(worker: FakeWorker, order: Any) -> None:
            nonlocal deaths
            before = chance.random() < 0.5
            doomed = deaths and chance.random() < 0.3
            if not (doomed and before):
                ORDINARY[event](worker, order)
            if doomed and not worker.dead:
                deaths -= 1
                worker.die()

        return act

    for worker in world.plan.workers:
        world.script.update({(worker.name, event): maybe_die(event) for event in ORDINARY})
    for _ in range(chance.randrange(4)):
        name = chance.choice(world.plan.workers).name
        world.at(chance.random() * 2, lambda name=name: world.newest(name).die())
    if chance.random() < 0.3:
        world.at(chance.random() * 2, world.supervisor.stop)

    supervisor = world.run()

    assert supervisor.confirmed
    assert_replayed_only_after_all_switched(world)
    assert all(w.dead for w in world.workers)


# -- pauses ----------------------------------------------------------------------------------------


def pauses(history: list[Any]) -> list[tuple[str, int, bool]]:
    return [(name, incarnation, o.paused) for name, incarnation, o in history if isinstance(o, control.Pause)]


def rest(worker: FakeWorker, order: Any) -> None:
    """A source that has heard of the pause reads nothing, and of its end, on."""
    if order.paused:
        worker.beats(worker.beat(1, completed=5, resting=True))
    else:
        finish(worker, order)


def read_on(worker: FakeWorker, order: Any) -> None:
    """The stream does not end by itself."""
    if worker.reads:
        worker.beats(worker.beat(1, completed=5))


def test_only_the_source_is_told_of_a_pause_and_its_end() -> None:
    world = World(script={(SOURCE, "Replay"): read_on, (SOURCE, "Pause"): rest})
    states: list[str] = []
    world.at(1.0, lambda: world.supervisor.pause(paused=True))
    world.at(2.0, lambda: states.append(world.supervisor.state))
    world.at(3.0, lambda: world.supervisor.pause(paused=False))

    world.run()

    assert pauses(world.history) == [(SOURCE, 1, True), (SOURCE, 1, False)]
    assert states == ["paused"]


def test_a_source_that_has_not_answered_yet_is_pausing() -> None:
    world = World(script={(SOURCE, "Replay"): read_on, (SOURCE, "Pause"): nothing})
    states: list[str] = []
    world.at(1.0, lambda: world.supervisor.pause(paused=True))
    world.at(2.0, lambda: states.append(world.supervisor.state))
    world.at(3.0, world.supervisor.stop)

    world.run()

    assert states == ["pausing"]


def test_a_new_incarnation_of_the_source_is_told_before_it_may_read() -> None:
    world = World(script={(SOURCE, "Replay"): read_on, (SOURCE, "Pause"): rest})
    world.supervisor.pause(paused=True)
    world.at(2.0, lambda: world.workers[0].die())
    world.at(4.0, world.supervisor.stop)

    world.run()

    told = [type(o).__name__ for name, incarnation, o in world.history if (name, incarnation) == (SOURCE, 2)]
    assert told.index("Pause") < told.index("Replay")
    assert world.supervisor.stopped
