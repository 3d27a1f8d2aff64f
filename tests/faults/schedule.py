"""What is killed, and when: drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from tests.faults import ledger, mixed, travel
from tests.faults.job import SOURCES, Job

WORKER_POINTS = ("task.before_step", "task.stepped", "task.sent", "task.acked")
ORIGIN_POINTS = ("origin.before_commit", "origin.committed", "origin.launched")
START_POINTS = ("worker.begun", "worker.switched", "supervisor.started_worker", "supervisor.wired")
RECOVERY_POINTS = ("supervisor.mourned", "supervisor.replayed")
END_POINTS = ("worker.closing", "supervisor.finishing", "supervisor.finished")
DURABLE_POINTS = ("durable.applied", "durable.acked", "durable.confirmed")
OUTSIDE_POINTS = ("outside.before_commit", "outside.committed")
TELLING_POINTS = ("origin.told",)
POINT_GROUPS = {
    "task": WORKER_POINTS,
    "origin": ORIGIN_POINTS,
    "start": START_POINTS,
    "recovery": RECOVERY_POINTS,
    "end": END_POINTS,
}
LEDGER_POINT_GROUPS = {
    **POINT_GROUPS,
    "origin": ORIGIN_POINTS + TELLING_POINTS,
    "durable": DURABLE_POINTS,
    "outside": OUTSIDE_POINTS,
}
VICTIMS = ("worker", "several", "hang", "forkserver", "supervisor", "everything")
HANG_TIMEOUT_S = 2.0
WORKERS: tuple[str | int, ...] = ("per-task", "per-task", 2, 3)
"""Half of the runs share workers. Their tasks are still named one by one; who lives together dies together."""
LONG_ITEMS = 50_000
"""From here on there is time for many kills."""
FEWEST_KILLS = 10
"""Of a stubborn schedule."""
SPENT_AT = 0.8
"""By then they have come about."""


@dataclass(frozen=True, slots=True)
class AtProgress:
    """When the sinks hold so much of what they will hold in the end."""

    fraction: float

    def __str__(self) -> str:
        return f"at {self.fraction:.1%}"


@dataclass(frozen=True, slots=True)
class AtStart:
    """When so many workers of this life have been started."""

    workers: int

    def __str__(self) -> str:
        return f"after {self.workers} workers were started"


@dataclass(frozen=True, slots=True)
class AtRecovery:
    """When so many workers have been started again after the last kill; 0: at once."""

    workers: int

    def __str__(self) -> str:
        return f"after {self.workers} workers were started again"


Trigger = AtProgress | AtStart | AtRecovery


@dataclass(frozen=True, slots=True)
class Attack:
    """A kill by the attacker; "hang" only stops a worker. ``tasks`` name the workers among the victims."""

    trigger: Trigger
    victim: str
    tasks: tuple[str, ...] = ()

    def __str__(self) -> str:
        whom = "+".join(self.tasks) or self.victim
        return f"{whom} {'hangs ' if self.victim == 'hang' else ''}{self.trigger}"


@dataclass(frozen=True, slots=True)
class Trap:
    """A kill at a failpoint: of whoever is the first to pass it so often, or of the whole group."""

    point: str
    passes: int
    group: bool

    def __str__(self) -> str:
        return f"{'everything' if self.group else 'whoever'} at {self.point}@{self.passes}"

    @property
    def group_of_points(self) -> str:
        return next(name for name, group in LEDGER_POINT_GROUPS.items() if self.point in group)


@dataclass(frozen=True, slots=True)
class Life:
    """From one start of the supervisor to its death. The attacks come one after another."""

    attacks: tuple[Attack, ...] = ()
    traps: tuple[Trap, ...] = ()

    def and_then(self, later: Life) -> Life:
        """Both in one; of two traps at a point only the first."""
        traps = {trap.point: trap for trap in (*later.traps, *self.traps)}
        return Life(self.attacks + later.attacks, tuple(traps.values()))

    def __str__(self) -> str:
        return ", ".join(map(str, (*self.attacks, *self.traps))) or "nothing"


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run: its job, and what happens in each of its lives. Further lives are left in peace."""

    job: Job
    lives: tuple[Life, ...]
    impatient: bool = False
    """Start the next life while workers of the last one may still be dying."""
    stubborn: bool = False
    """What did not come about in one life is done in the next, and who is not there is waited for."""
    reserve: tuple[Attack, ...] = ()
    """Of a stubborn one: the n-th is carried out where fewer than n kills have come about by then."""

    def kinds(self) -> set[str]:
        """The kinds of victims, and the groups of failpoints, as ``@group``."""
        found = {attack.victim for life in self.lives for attack in life.attacks}
        return found | {f"@{trap.group_of_points}" for life in self.lives for trap in life.traps}

    def __str__(self) -> str:
        job = self.job
        told = "; then ".join(f"life {number}: {life}" for number, life in enumerate(self.lives, 1))
        how = ", impatient" if self.impatient else ""
        what = ", ".join(
            filter(None, (_sources(job), job.fork, job.right, job.stores, "PostgreSQL" if job.server else ""))
        )
        return f"{job.work}, {job.items} items, {what}, sync={job.sync}, workers={job.workers}{how}; {told}"


def _sources(job: Job) -> str:
    if not job.shares:
        return job.source
    several = " + ".join(f"{kind} * {count}" for kind, count in job.shares.items())
    order = "before" if job.paces_first else "behind"
    return (
        f"{several}, {job.per_second:,.0f} a second (burst {job.burst}) {order} {job.at_once} at once for "
        f"{job.wait_s * 1000:g} ms"
    )


@dataclass(slots=True)
class _TravelDraw:
    rng: random.Random
    source: str
    spares_supervisor: bool
    """A pipe cannot be read a second time."""
    workers: str | int
    at: float = 0.0
    """How far the run is when the next attack comes."""
    step: float = 0.0

    def life(self, *, is_last: bool) -> Life:
        victims = ("worker", "several", "forkserver", "hang")
        attacks = [self.attack(victims, (12, 6, 2, 1)) for _ in range(self.rng.randint(0, 3))]
        traps = [self.harmless_trap() for _ in range(self.rng.randint(0, 2))]
        if not is_last:
            if self.rng.random() < 0.5:
                attacks.append(self.attack(("supervisor", "everything"), (1, 1)))
            else:
                traps.append(self.deadly_trap())
        if not attacks and not traps and not self.at:
            attacks.append(self.attack(victims, (12, 6, 2, 1)))
        return Life(tuple(attacks), tuple({trap.point: trap for trap in traps}.values()))

    def attack(self, victims: tuple[str, ...], weights: tuple[int, ...]) -> Attack:
        victim = self.rng.choices(victims, weights)[0]
        count = {"worker": 1, "hang": 1, "several": self.rng.randint(2, 4)}.get(victim, 0)
        tasks = travel.TASKS if self.source != "list" else ("source.0", *travel.TASKS)
        return Attack(self.trigger(), victim, tuple(self.rng.sample(tasks, count)))

    def trigger(self) -> Trigger:
        kind = self.rng.choices(("progress", "end", "recovery", "start"), (10, 2, 6, 2))[0]
        if kind == "end":
            return AtProgress(self.rng.uniform(0.97, 1.0))
        if kind == "start":
            return AtStart(self.rng.randint(1, 8))
        if kind == "recovery":
            return AtRecovery(self.rng.randint(0, 2))
        self.at = min(0.999, self.at + self.rng.random() * self.step)
        return AtProgress(self.at)

    def passes(self, most: int) -> int:
        """Small counts as often as large ones."""
        return int(most ** self.rng.random())

    def harmless_trap(self) -> Trap:
        """One that the supervisor survives, unless it reads the source itself."""
        others = (*ORIGIN_POINTS, "worker.begun", "worker.switched", "worker.closing")
        point = self.rng.choice(WORKER_POINTS if self.spares_supervisor else WORKER_POINTS + others)
        return Trap(point, self.passes(60 if point in WORKER_POINTS + ORIGIN_POINTS else 2), False)

    def deadly_trap(self) -> Trap:
        group = self.rng.choice(("task", "origin", "start", "recovery", "end"))
        point = self.rng.choice(POINT_GROUPS[group])
        most = {"task": 60, "origin": 60, "start": 2, "recovery": 2, "end": 1}[group]
        if point == "supervisor.started_worker":
            most = 12 if self.workers == "per-task" else int(self.workers)
        return Trap(point, self.passes(most), not point.startswith("supervisor") or self.rng.random() < 0.3)


def draw(work: str, seed: int, items: int, folder: str = "", server: str = "") -> Schedule:
    """The schedule of a seed; the same for ever, as long as this file is the same."""
    if work == "travel":
        return _draw_travel(seed, items, folder)
    return (_draw_ledger if work == "ledger" else _draw_mixed)(seed, items, folder, server)


def _draw_travel(seed: int, items: int, folder: str) -> Schedule:
    rng = random.Random(seed)
    lives = rng.choice((1, 2, 2, 3, 3))
    source = SOURCES[seed % len(SOURCES)]
    if source == "pipe":
        lives = 1
    workers = _draw_workers("travel", seed)
    drawing = _TravelDraw(rng, source, spares_supervisor=source == "pipe", workers=workers, step=1.0 / lives)
    drawn = tuple(_travel_lives(drawing, lives))
    job = Job(
        seed=seed,
        work="travel",
        items=items,
        source=source,
        fork=rng.choice(("broadcast", "route")),
        right=rng.choice(("recorder", "text")),
        sync=rng.choice(("power", "power", "process")),
        timeout_s=_timeout_s(drawn),
        folder=folder,
        workers=workers,
    )
    return Schedule(job, drawn, impatient=rng.random() < 0.3)


@dataclass(slots=True)
class _LedgerDraw:
    rng: random.Random
    source: str
    tasks: tuple[str, ...]
    most_passes: int
    fractions: list[float]
    """How far the run is at each of the attacks: all over it, though not all attacks wait for it."""
    drawn: int = 0

    @property
    def spares_supervisor(self) -> bool:
        return self.source == "pipe"

    def life(self, kills: int, *, is_last: bool) -> Life:
        traps = [self.harmless_trap() for _ in range(sum(self.rng.random() < 0.4 for _ in range(kills)))]
        attacks = [self.attack(("worker", "several", "forkserver", "hang"), (20, 10, 2, 1)) for _ in range(kills)]
        del attacks[: len(traps)]
        if not is_last and self.rng.random() < 0.5:
            attacks.append(self.attack(("supervisor", "everything"), (1, 1)))
        elif not is_last:
            traps.append(self.deadly_trap())
            self.drawn += 1
        return Life(tuple(attacks), tuple({trap.point: trap for trap in traps}.values()))

    def attack(self, victims: tuple[str, ...], weights: tuple[int, ...]) -> Attack:
        victim = self.rng.choices(victims, weights)[0]
        self.drawn += 1
        count = {"worker": 1, "hang": 1, "several": self.rng.randint(2, 5)}.get(victim, 0)
        return Attack(self.trigger(), victim, tuple(self.rng.sample(self.tasks, count)))

    def trigger(self) -> Trigger:
        kind = self.rng.choices(("progress", "recovery", "start"), (12, 5, 1))[0]
        if kind == "start":
            return AtStart(self.rng.randint(1, len(self.tasks)))
        if kind == "recovery":
            return AtRecovery(self.rng.randint(0, 2))
        return AtProgress(self.fractions[self.drawn - 1])

    def harmless_trap(self) -> Trap:
        """One that the supervisor survives, unless it reads the source itself."""
        groups = ["task", "durable", "durable", "outside"]
        if not self.spares_supervisor:
            groups += ["origin", "origin", "worker"]
        return self.trap(self.rng.choice(groups))

    def deadly_trap(self) -> Trap:
        trap = self.trap(self.rng.choice(list(LEDGER_POINT_GROUPS)))
        return replace(trap, group=not trap.point.startswith("supervisor") or self.rng.random() < 0.3)

    def trap(self, group: str) -> Trap:
        points = {**LEDGER_POINT_GROUPS, "worker": ("worker.begun", "worker.switched", "worker.closing")}[group]
        most = {"start": 3, "recovery": 2, "worker": 3, "end": 1}.get(group, self.most_passes)
        return Trap(self.rng.choice(points), int(most ** self.rng.random()), False)


def _draw_ledger(seed: int, items: int, folder: str, server: str) -> Schedule:
    rng = random.Random(f"ledger {seed}")
    source = SOURCES[seed % len(SOURCES)]
    tasks = ledger.TASKS_WITH_SERVER if server else ledger.TASKS
    if source == "list":
        tasks = ("source.0", *tasks)
    drawn = _draw_kills(rng, items, source, tasks)
    job = Job(
        seed=seed,
        work="ledger",
        items=items,
        source=source,
        sync=rng.choice(("power", "power", "process")),
        timeout_s=_timeout_s(drawn),
        folder=folder,
        stores=rng.choice(("own", "bundled")),
        server=server,
        workers=_draw_workers("ledger", seed),
    )
    return _schedule(rng, job, drawn, tasks)


def _draw_mixed(seed: int, items: int, folder: str, server: str) -> Schedule:
    rng = random.Random(f"mixed {seed}")
    kinds = rng.sample(mixed.KINDS, rng.randint(2, len(mixed.KINDS)))
    if not set(kinds).intersection(mixed.SPLIT):
        kinds.append(rng.choice(mixed.SPLIT))
    shares = {kind: rng.randint(2, 3) if kind in mixed.SPLIT else 1 for kind in kinds}
    tasks = mixed.tasks_of(shares, server)
    source = "generator" if "told" in shares else "list"
    drawn = _draw_kills(rng, items, source, tasks)
    job = Job(
        seed=seed,
        work="mixed",
        items=items,
        source=source,
        sync=rng.choice(("power", "power", "process")),
        timeout_s=_timeout_s(drawn),
        folder=folder,
        stores=rng.choice(("own", "bundled")),
        server=server,
        workers=_draw_workers("mixed", seed),
        shares=shares,
        per_second=items / rng.choice((0.5, 2.0, 8.0)),
        burst=rng.choice((0, 5, 1000)),
        paces_first=rng.random() < 0.5,
        at_once=rng.choice((4, 100)),
        wait_s=rng.choice((0.001, 0.01)),
    )
    return _schedule(rng, job, drawn, tasks)


def _draw_kills(rng: random.Random, items: int, source: str, tasks: tuple[str, ...]) -> tuple[Life, ...]:
    is_long = items >= LONG_ITEMS
    kills = rng.randint(16, 38) if is_long else rng.randint(3, 5)
    lives = 1 if source == "pipe" else rng.randint(1, 2 + kills // 12)
    fractions = sorted(rng.random() for _ in range(kills))
    most_passes = max(400, items // 1000) if is_long else 30
    drawing = _LedgerDraw(rng, source, tasks, most_passes, fractions)
    shares = [(kills - lives + 1) * n // lives for n in range(lives + 1)]
    return tuple(
        drawing.life(until - since, is_last=number == lives)
        for number, (since, until) in enumerate(pairwise(shares), 1)
    )


def _timeout_s(lives: tuple[Life, ...]) -> float:
    hangs = any(attack.victim == "hang" for life in lives for attack in life.attacks)
    return HANG_TIMEOUT_S if hangs else 30.0


def _schedule(rng: random.Random, job: Job, lives: tuple[Life, ...], tasks: tuple[str, ...]) -> Schedule:
    is_long = job.items >= LONG_ITEMS
    reserve = tuple(_draw_reserve(job.seed, tasks)) if is_long else ()
    return Schedule(job, lives, impatient=rng.random() < 0.3, stubborn=is_long, reserve=reserve)


def _draw_reserve(seed: int, tasks: tuple[str, ...]) -> Iterator[Attack]:
    """Kills by progress alone: drawn ones may wait for what a fast run does not come to. By numbers of its own."""
    rng = random.Random(f"reserve {seed}")
    for number in range(1, FEWEST_KILLS + 1):
        yield Attack(AtProgress(SPENT_AT * number / FEWEST_KILLS), "worker", (rng.choice(tasks),))


def _draw_workers(work: str, seed: int) -> str | int:
    """By numbers of its own, so that all else of a seed is the same with any of them."""
    return random.Random(f"workers of {work} {seed}").choice(WORKERS)


def _travel_lives(drawing: _TravelDraw, count: int) -> Iterator[Life]:
    for number in range(1, count + 1):
        yield drawing.life(is_last=number == count)
