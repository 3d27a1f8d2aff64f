"""What all parts of one simulated schedule share: clock, network, disks, oracles, and the kills to come."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

from consecution.protocol.dispatch import Dispatch
from consecution.protocol.ending import Ending
from consecution.protocol.origin import Origin
from consecution.protocol.recovery import Recovery
from consecution.protocol.step import Step
from consecution.protocol.values import FrameId, Message, TaskIndex
from consecution.runtime.origin_host import OriginHost
from consecution.testing.disk import Disk
from consecution.testing.network import Network
from consecution.testing.oracle import Oracle
from consecution.testing.schedule import Kill, Schedule
from consecution.testing.world import VALUE_BITS, World

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


class Crash(BaseException):
    """The running process is killed here. Not an Exception: no code under test may catch it."""

    def __init__(self, kill: Kill) -> None:
        super().__init__(kill)
        self.kill = kill


class Receiver(Protocol):
    """A living task, for those in the same process."""

    def receive_now(self, message: Message) -> None: ...


class Scene:
    """The simulated machine: what is on it survives the death of any process."""

    def __init__(self, schedule: Schedule, world: World, rng: Random, parts: Parts, *, tracing: bool = False) -> None:
        self.schedule = schedule
        self.world = world
        self.rng = rng
        self.parts = parts
        self.network = Network(schedule, rng)
        self.now_s = 1_000_000.0
        self.items = [number << VALUE_BITS | rng.getrandbits(8) for number in range(schedule.items)]
        self.disks: dict[TaskIndex, Disk] = {}
        self.oracles: dict[TaskIndex, Oracle] = {}
        self.together: dict[TaskIndex, Receiver] = {}
        self.ended: set[TaskIndex] = set()
        self.events: list[str] = []
        self._tracing = tracing
        self._aims = [kill for kill in schedule.kills if kill.place]
        self._aimed = {kill.place for kill in self._aims}
        self._passes: dict[str, int] = {}

    def now(self) -> float:
        return self.now_s

    def add_origin(self, task: TaskIndex) -> None:
        """Give an origin its disk, and an oracle that watches it."""
        disk = self.disks[task] = Disk()
        self.oracles[task] = Oracle(disk, self.schedule.limits, self.items, self.now)

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
