"""What a seed decides before anything runs: how much there is to do, how fast, and what goes wrong when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from consecution.protocol.origin import OriginLimits
from consecution.protocol.values import TaskIndex

PLACES = (
    "origin.before_commit",
    "origin.committed",
    "origin.sent",
    "task.stepped",
    "task.sent",
    "task.acked",
    "worker.switched",
    "supervisor.wired",
    "supervisor.replayed",
)
"""Gaps at which a kill may be aimed: between commit and send, between sends, between send and ack."""

IN_COMMIT = "disk.in_commit"
DURABLE_PLACES = (
    "origin.before_commit",
    "origin.committed",
    "origin.launched",
    "origin.told",
    "durable.applied",
    "durable.acked",
    "durable.confirmed",
    "durable.sent",
    "durable.begun",
    "origin.sent",
    "task.stepped",
    "task.acked",
    "worker.switched",
    "supervisor.replayed",
    IN_COMMIT,
)
"""The same where tasks are durable."""
OUTSIDE_PLACES = ("outside.before_commit", "outside.committed", "origin.committed")
"""Between the commit of a database and the task's own."""

HAS_ENDED = "durable.ended"
"""A durable task has said that it has ended, or is drained."""

TIMEOUT_OFF_S = 1e12
LONGEST_KILL_STEP = 100
ITEM_COUNTS = (0, 1, 2, 4, 6, 8, 12)


@dataclass(frozen=True, slots=True)
class Kill:
    """A crash, at a step of the schedule or when ``place`` is passed for the ``passes``-th time.

    A kill at a place takes the task that passes it; one at a step takes ``victims``. Either takes
    everything, supervisor included, where ``everything`` is True; a ``power_cut`` takes with it what was
    written and is not safe yet.
    """

    step: int = 0
    place: str = ""
    passes: int = 0
    victims: tuple[TaskIndex, ...] = ()
    everything: bool = False
    power_cut: bool = False


class Crash(BaseException):
    """The running process is killed here. Not an Exception: no code under test may catch it."""

    def __init__(self, kill: Kill) -> None:
        super().__init__(kill)
        self.kill = kill


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule. ``items``: so many for each source. ``robust`` False has no journal: deaths abandon what is open.

    ``together`` puts all tasks into one worker whose tasks call each other without a network. ``workers`` says
    which tasks live and die as one.
    ``reorder``, ``repeat`` and ``lose`` are the odds of each at every delivery, 0 where nothing is
    promised for it.
    """

    seed: int
    items: tuple[int, ...]
    robust: bool
    together: bool
    fickle: bool
    unencodable: bool
    limits: OriginLimits
    max_frame_items: int
    kills: tuple[Kill, ...]
    stop_at_step: int | None
    reorder: float
    repeat: float
    lose: float
    workers: tuple[tuple[TaskIndex, ...], ...]


def make_schedule(
    seed: int,
    rng: Random,
    tasks: int,
    *,
    robust: bool,
    fickle: bool,
    retries: int,
    sources: int = 1,
    durable_places: tuple[str, ...] = (),
) -> Schedule:
    """Draw a schedule for a pipeline of ``tasks`` tasks, the first of which are its ``sources``.

    ``durable_places`` are the gaps that durable tasks have.
    """
    together = robust and rng.random() < 0.08
    timeout_on = robust and not together and rng.random() < 0.3

    def draw_kill() -> Kill:
        if durable_places:
            return _draw_durable_kill(rng, tasks, durable_places, everything=together)
        return _draw_kill(rng, tasks, robust, together, sources)

    adversarial = robust and not together and rng.random() < 0.3
    return Schedule(
        seed=seed,
        items=tuple(rng.choice(ITEM_COUNTS) for _ in range(sources)),
        robust=robust,
        together=together,
        fickle=fickle,
        unencodable=rng.random() < 0.15,
        limits=OriginLimits(
            batch_size=rng.randint(1, 4),
            max_pending=rng.choice((1, 2, 4, 8)),
            max_pending_bytes=rng.choice((40, 1_000_000)),
            retries=retries if robust else 0,
            retry_delay_s=rng.choice((0.0, 0.05, 1.0)),
            tree_timeout_s=rng.choice((2.0, 10.0)) if timeout_on else TIMEOUT_OFF_S,
            replays=robust,
        ),
        max_frame_items=rng.choice((2, 100)),
        kills=tuple(draw_kill() for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5, 8)))),
        stop_at_step=rng.randrange(1, 150) if robust and rng.random() < 0.25 else None,
        reorder=0.3 if adversarial else 0.0,
        repeat=0.1 if adversarial else 0.0,
        lose=0.03 if adversarial and timeout_on else 0.0,
        workers=_draw_workers(Random(seed), tasks, apart=0 if robust else sources),
    )


def with_late_kills(schedule: Schedule, rng: Random) -> Schedule:
    """Stop the run, and kill tasks that have just said that they are drained: nobody waits for them any more."""
    if rng.random() < 0.7:
        return schedule
    late = tuple(Kill(place=HAS_ENDED, passes=rng.randint(1, 6)) for _ in range(rng.choice((1, 1, 2))))
    stop_at_step = schedule.stop_at_step or rng.randrange(1, 60)
    return replace(schedule, kills=schedule.kills + late, stop_at_step=stop_at_step)


def _draw_workers(rng: Random, tasks: int, *, apart: int) -> tuple[tuple[TaskIndex, ...], ...]:
    """A worker for each task, or fewer for all of them. Without a journal nobody kills sources: they are ``apart``."""
    if rng.random() < 0.6:
        return tuple((TaskIndex(task),) for task in range(tasks))
    hosted: list[list[TaskIndex]] = [[] for _ in range(rng.choice((1, 2, 2, 2, 3)))]
    dealt = rng.random() < 0.5
    for task in range(apart, tasks):
        hosted[task % len(hosted) if dealt else rng.randrange(len(hosted))].append(TaskIndex(task))
    crews = tuple(tuple(crew) for crew in hosted if crew)
    return (*((TaskIndex(task),) for task in range(apart)), *crews)


def _draw_kill(rng: Random, tasks: int, robust: bool, together: bool, sources: int) -> Kill:
    everything = robust and (together or rng.random() < 0.2)
    if robust and rng.random() < 0.6:
        place = rng.choice(PLACES)
        return Kill(place=place, passes=1 + int(rng.random() ** 2 * 15), everything=everything)
    first = 0 if robust else sources
    several = rng.choice((1, 1, 1, 2, 3))
    victims = tuple(TaskIndex(rng.randrange(first, tasks)) for _ in range(several))
    return Kill(step=1 + int(rng.random() ** 1.5 * LONGEST_KILL_STEP), victims=victims, everything=everything)


def _draw_durable_kill(rng: Random, tasks: int, places: tuple[str, ...], *, everything: bool) -> Kill:
    """Most are aimed at the gaps: the rarest bugs live there."""
    everything = everything or rng.random() < 0.25
    power_cut = everything and rng.random() < 0.6
    if rng.random() < 0.75:
        place = rng.choice(places)
        passes = 1 + int(rng.random() ** 2 * 25)
        return Kill(place=place, passes=passes, everything=everything, power_cut=power_cut)
    victims = tuple(TaskIndex(rng.randrange(tasks)) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    step = 1 + int(rng.random() ** 1.5 * 3 * LONGEST_KILL_STEP)
    return Kill(step=step, victims=victims, everything=everything, power_cut=power_cut)
