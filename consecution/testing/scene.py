"""What all parts of one simulated schedule share: clock, network, disks, oracles, and the kills to come."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

from consecution.protocol.dispatch import Dispatch
from consecution.protocol.durable import Durable
from consecution.protocol.ending import Ending
from consecution.protocol.origin import Origin
from consecution.protocol.recovery import Recovery
from consecution.protocol.step import Step
from consecution.protocol.values import FrameId, Message, TaskIndex, WorkerIndex
from consecution.runtime.appliers import TransactionApplier
from consecution.runtime.durable_host import DurableHost
from consecution.runtime.origin_host import OriginHost
from consecution.runtime.paced_host import PacedTaskHost
from consecution.testing.disk import Disk
from consecution.testing.durable_oracle import DurableOracle
from consecution.testing.durable_store import DurableDisk, DurableWriter
from consecution.testing.network import Network
from consecution.testing.oracle import Oracle
from consecution.testing.outside import Database, File, Log, Outside
from consecution.testing.schedule import Crash, Schedule
from consecution.testing.world import VALUE_BITS, Item, Keeping, NodeShape, World

FURTHER_SOURCES = 1 << 10
"""So far apart are the numbers of two sources' items."""
STEP_S = 0.003
"""How far the clock moves at every step."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The code under test. A test that plants a bug puts a subclass in the place of a part."""

    origin: type[Origin] = Origin
    host: type[OriginHost] = OriginHost
    step: type[Step] = Step
    dispatch: type[Dispatch] = Dispatch
    recovery: type[Recovery] = Recovery
    ending: type[Ending] = Ending
    durable: type[Durable] = Durable
    durable_host: type[DurableHost] = DurableHost
    store: type[DurableWriter] = DurableWriter
    transaction_applier: type[TransactionApplier] = TransactionApplier
    paced_host: type[PacedTaskHost] = PacedTaskHost


class Receiver(Protocol):
    """A living task, for those in the same process."""

    def receive_now(self, message: Message) -> None: ...


def _numbers(place: int, count: int) -> range:
    """The numbers of a source's items: no two sources have one in common."""
    first = place * FURTHER_SOURCES
    return range(first, first + count)


class Scene:
    """The simulated machine: what is on it survives the death of any process."""

    def __init__(self, schedule: Schedule, world: World, rng: Random, parts: Parts, *, tracing: bool = False) -> None:
        self.schedule = schedule
        self.world = world
        self.rng = rng
        self.parts = parts
        self.network = Network(schedule, rng)
        self.now_s = 1_000_000.0
        self.items: dict[TaskIndex, list[Item]] = {
            task: [number << VALUE_BITS | rng.getrandbits(8) for number in _numbers(place, count)]
            for place, (task, count) in enumerate(zip(world.sources, schedule.items, strict=True))
        }
        self.disks: dict[TaskIndex, Disk] = {}
        self.oracles: dict[TaskIndex, Oracle] = {}
        self.durable_disks: dict[TaskIndex, DurableDisk] = {}
        self.durable_oracles: dict[TaskIndex, DurableOracle] = {}
        self.outside: dict[TaskIndex, Outside | None] = {}
        self.home_of = {task: WorkerIndex(at) for at, crew in enumerate(schedule.workers) for task in crew}
        self.together: dict[TaskIndex, Receiver] = {}
        self.ended: set[TaskIndex] = set()
        self.events: list[str] = []
        self._tracing = tracing
        self._aims = [kill for kill in schedule.kills if kill.place]
        self._aimed = {kill.place for kill in self._aims}
        self._passes: dict[str, int] = {}

    def now(self) -> float:
        return self.now_s

    def add_origins(self) -> None:
        """Give the sources and each durable task their disks, and oracles that watch them."""
        world, limits = self.world, self.schedule.limits
        for task, items in self.items.items():
            disk = self.disks[task] = Disk()
            self.oracles[task] = Oracle(disk, limits, items, self.now, self.durable_disks, task, world=world)
        for task in sorted(world.durable_tasks):
            self._add_durable(task, world.node_of[task])

    def _add_durable(self, task: TaskIndex, shape: NodeShape) -> None:
        disk = DurableDisk()
        outside: Outside | None = None
        if shape.keeping is Keeping.WRITES:
            outside = Log()
        elif shape.keeping is Keeping.APPENDS:
            outside = File()
        elif shape.keeping is Keeping.TRANSACTS:
            outside = Database()
        self.disks[task] = self.durable_disks[task] = disk
        self.outside[task] = outside
        oracle = DurableOracle(
            self.world, task, disk, outside, self.oracles, self.durable_disks, self.schedule.limits, self.now
        )
        self.oracles[task] = self.durable_oracles[task] = oracle

    def make_id(self) -> FrameId:
        return FrameId(self.rng.getrandbits(64) or 1)

    def advance(self) -> None:
        """One step more."""
        self.network.step += 1
        self.now_s += STEP_S

    def passed(self, place: str) -> None:
        """The running process is at this place: the kill that was aimed at it happens now."""
        if place not in self._aimed:
            return
        count = self._passes[place] = self._passes.get(place, 0) + 1
        for kill in self._aims:
            if kill.place == place and kill.passes == count:
                self._aims.remove(kill)
                raise Crash(kill)

    def trace(self, text: str, *parts: object) -> None:
        """Note an event; ``{}`` in the text stand for the parts."""
        if self._tracing:
            self.events.append(f"{self.network.step:5} {self.now_s - 1_000_000:9.3f}  {text.format(*parts)}")
