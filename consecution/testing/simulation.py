"""Runs one schedule from its seed to its end, or to the first broken promise; and many of them."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from consecution.protocol.values import TaskIndex, WorkerIndex
from consecution.runtime import failpoints
from consecution.testing.crews import start_crew
from consecution.testing.model import Expected
from consecution.testing.process import Crew, Process
from consecution.testing.scene import Parts, Scene
from consecution.testing.schedule import (
    DURABLE_PLACES,
    HAS_ENDED,
    OUTSIDE_PLACES,
    Crash,
    Kill,
    make_schedule,
    with_late_kills,
)
from consecution.testing.supervisor import Supervisor
from consecution.testing.violation import Violation
from consecution.testing.world import (
    Keeping,
    World,
    make_durable_world,
    make_world,
    with_failed_edges,
    with_paces,
    with_policies,
    with_sources,
    with_timers,
)

MOST_STEPS = 20_000
LONGEST_WAIT_S = 1e6
"""What is due later than this is never due: the tree timeout is off."""
CALM_AFTER = 600
"""After so many steps the network behaves, so that every schedule can end."""
POLICIES, TIMERS, SOURCES, LATE_KILLS, PACES = 0x9011C1, 0x71C4, 0x50CE5, 0x1A7E, 0x9ACE5
"""What is drawn of its own for a seed leaves its other draws as they were."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one schedule went. ``problem`` is None where every promise was kept."""

    seed: int
    problem: str | None
    steps: int
    deaths: int
    batches: int
    executions: int
    events: tuple[str, ...] = ()


@dataclass(slots=True)
class Summary:
    """How many schedules went. ``failed`` holds the outcomes of those that broke a promise."""

    schedules: int = 0
    steps: int = 0
    deaths: int = 0
    batches: int = 0
    executions: int = 0
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.schedules += 1
        self.steps += outcome.steps
        self.deaths += outcome.deaths
        self.batches += outcome.batches
        self.executions += outcome.executions
        if outcome.problem is not None:
            self.failed.append(outcome)

    def __str__(self) -> str:
        return (
            f"{self.schedules} schedules, {self.steps} steps, {self.deaths} deaths, "
            f"{self.executions} executions of {self.batches} batches: {len(self.failed)} wrong"
        )


class Simulation:
    """One schedule. ``parts`` is the code under test; ``tracing`` keeps the events in the outcome."""

    def __init__(self, seed: int, parts: Parts = Parts(), *, tracing: bool = False) -> None:
        rng = Random(seed)
        durable = is_durable(seed)
        robust, fickle = rng.random() < 0.9 or durable, rng.random() < 0.4
        retries = rng.choice((0, 1, 2, 3)) if robust else 0
        world = (make_durable_world if durable else make_world)(rng, fickle=fickle, retries=retries)
        world = with_paces(with_sources(world, Random(seed ^ SOURCES)), Random(seed ^ PACES))
        world = with_failed_edges(world, Random(~seed))
        if robust:
            world = with_timers(with_policies(world, Random(seed ^ POLICIES)), Random(seed ^ TIMERS))
        self.schedule = make_schedule(
            seed,
            rng,
            len(world.tasks),
            robust=robust,
            fickle=fickle,
            retries=retries,
            sources=len(world.sources),
            durable_places=_places_of(world) if durable else (),
        )
        if durable:
            self.schedule = with_late_kills(self.schedule, Random(seed ^ LATE_KILLS))
        self.scene = Scene(self.schedule, world, rng, parts, tracing=tracing)
        self.scene.add_origins()
        self.deaths = 0
        self._incarnations = 0
        self._kills = {kill.step: kill for kill in self.schedule.kills if not kill.place}
        self._stop_at_step = self.schedule.stop_at_step
        self._supervisor = self._new_life()

    def run(self) -> Outcome:
        """Run to the end. Never raises for what the code under test does."""
        problem: str | None = None
        try:
            with failpoints.watched(self.scene.passed):
                while not self._supervisor.finished:
                    self._step()
            self._check_end()
        except Violation as violation:
            problem = str(violation)
        except Exception as error:
            problem = "".join(traceback.format_exception(error))
        scene, oracles = self.scene, self.scene.oracles.values()
        return Outcome(
            self.schedule.seed,
            problem,
            scene.network.step,
            self.deaths,
            sum(oracle.decided_count for oracle in oracles),
            sum(oracle.execution_count for oracle in oracles),
            tuple(scene.events),
        )

    # -- lives -----------------------------------------------------------------------------------

    def _new_life(self) -> Supervisor:
        """The system starts, on the disks that are there."""
        self.scene.ended.clear()
        supervisor = Supervisor(self.scene, self._start)
        supervisor.begin()
        return supervisor

    def _start(self, worker: WorkerIndex) -> Crew:
        self._incarnations += 1
        crew = start_crew(self.scene, worker, self._incarnations)
        self.scene.together.update(crew.members)
        return crew

    def _end_life(self, *, power_cut: bool = False) -> None:
        """Every process is gone, supervisor included."""
        for process in self._supervisor.processes.values():
            self._end_process(process, power_cut=power_cut)
        self._supervisor = self._new_life()

    def _end_process(self, process: Process, *, power_cut: bool = False) -> None:
        if process.alive:
            process.alive = False
            process.died(power_cut=power_cut)
            self.scene.network.died(process.endpoint)

    # -- deaths ----------------------------------------------------------------------------------

    def _kill(self, kill: Kill, at: TaskIndex | None = None) -> None:
        self.deaths += 1
        victims = kill.victims if at is None else (at,)
        self.scene.trace("KILL {} (victims {})", kill, victims)
        if kill.place == HAS_ENDED:
            self.scene.world.tick_again()
        if kill.everything or not victims or self.schedule.together:
            self._end_life(power_cut=kill.power_cut)
            return
        for worker in {self.scene.home_of[task]: None for task in victims}:
            crew = self._supervisor.crews.get(worker)
            if crew is not None and all(process.alive for process in crew.members.values()):
                for process in crew.members.values():
                    self._end_process(process)
                self._supervisor.died(crew)

    # -- the loop --------------------------------------------------------------------------------

    def _step(self) -> None:
        scene = self.scene
        scene.advance()
        step = scene.network.step
        if step > MOST_STEPS:
            raise Violation(f"the schedule has not ended after {MOST_STEPS} steps")
        scene.network.calm = step > CALM_AFTER
        if step in self._kills:
            self._kill(self._kills.pop(step))
        if self._stop_at_step is not None and step >= self._stop_at_step:
            self._stop_at_step = None
            self._supervisor.stop_asked = True
        self._move()
        if self._supervisor.drained:
            self._restart_after_drain()

    def _move(self) -> None:
        """One process takes a turn, or the supervisor acts."""
        supervisor = self._supervisor
        ready = [process for process in supervisor.processes.values() if process.has_work()]
        choices = len(ready) + supervisor.has_work()
        if not choices:
            self._wait()
            return
        at = int(self.scene.rng.random() * choices)
        task = ready[at].task if at < len(ready) else None
        try:
            if at < len(ready):
                ready[at].turn()
            else:
                supervisor.act()
        except Crash as crash:
            self._kill(crash.kill, task)

    def _wait(self) -> None:
        """Nothing moves: time passes until something does."""
        scene = self.scene
        if scene.network.release():
            return
        processes = self._supervisor.processes.values()
        wakes = [wake_s for process in processes if (wake_s := process.wake()) is not None]
        due_s = min(wakes, default=None)
        if due_s is None or due_s > scene.now_s + LONGEST_WAIT_S:
            counts = {process.task: process.counts() for process in processes}
            raise Violation(f"stuck: nothing moves and nothing is due; the origins say {counts}")
        if due_s > scene.now_s:
            scene.now_s = due_s

    def _restart_after_drain(self) -> None:
        self.scene.trace("drained")
        for oracle in self.scene.oracles.values():
            oracle.check_over(exhausted=False)
        self._check_durable(ended=False)
        self._end_life()

    def _check_durable(self, *, ended: bool) -> None:
        for oracle in self.scene.durable_oracles.values():
            oracle.check_kept()
            oracle.check_inbox(ended=ended)

    # -- the end ---------------------------------------------------------------------------------

    def _check_end(self) -> None:
        scene = self.scene
        for oracle in scene.oracles.values():
            oracle.check_over(exhausted=True)
        self._check_durable(ended=True)
        wanting = {task for node in scene.world.nodes if node.wants_end for task in node.tasks}
        ended = scene.ended | {task for task, disk in scene.durable_disks.items() if disk.ended}
        if not ended >= wanting:
            raise Violation(f"the run is over, but only {sorted(ended)} of {sorted(wanting)} have ended")
        if self.schedule.robust and not scene.world.fickle:
            self._check_results()

    def _check_results(self) -> None:
        """Exactly what the shape of the pipeline says has reached the sinks, or was given up."""
        scene = self.scene
        expected = Expected(scene.world, scene.items, unencodable=self.schedule.unencodable)
        for task, oracle in scene.durable_oracles.items():
            expected.push(scene.world.node_of[task], oracle.ticked_items)
        written = Counter(write for oracle in scene.oracles.values() for write in oracle.writes())
        if written != expected.written:
            missing, extra = expected.written - written, written - expected.written
            raise Violation(f"the sinks miss {dict(missing)}, and hold {dict(extra)} too much")
        given_up = Counter(
            (scene.world.node_of[entry.failed.task].index, entry.failed.stage, int(entry.failed.shown))
            for disk in scene.disks.values()
            for entry in disk.given_up
        )
        if given_up != expected.given_up:
            raise Violation(f"given up are {dict(given_up)}; expected were {dict(expected.given_up)}")
        handed = sum(disk.head.handled for disk in scene.disks.values())
        if handed != expected.handed:
            raise Violation(f"{handed} items went over failed edges; expected were {expected.handed}")


def _places_of(world: World) -> tuple[str, ...]:
    """The gaps worth aiming at, those around a database's commit where there is one."""
    commits_elsewhere = any(node.keeping is Keeping.TRANSACTS for node in world.nodes)
    return (*DURABLE_PLACES, *(OUTSIDE_PLACES * 2 if commits_elsewhere else ()))


def is_durable(seed: int) -> bool:
    """Whether the world of this seed has durable tasks: every second one has."""
    return seed % 2 == 0


def run_schedule(seed: int, parts: Parts = Parts(), *, tracing: bool = False) -> Outcome:
    """Run the schedule of one seed."""
    return Simulation(seed, parts, tracing=tracing).run()


def run_schedules(
    count: int,
    first_seed: int = 0,
    parts: Parts = Parts(),
    *,
    on_outcome: Callable[[Summary, Outcome], None] | None = None,
) -> Summary:
    """Run the schedules of ``count`` seeds in a row. ``on_outcome`` hears of each as it ends."""
    summary = Summary()
    for outcome in _outcomes(count, first_seed, parts):
        summary.add(outcome)
        if on_outcome is not None:
            on_outcome(summary, outcome)
    return summary


def _outcomes(count: int, first_seed: int, parts: Parts) -> Iterator[Outcome]:
    return (run_schedule(seed, parts) for seed in range(first_seed, first_seed + count))
