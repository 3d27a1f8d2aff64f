"""Simulated stateless tasks that do not answer a frame at once: some hold it for long, some let it through in parts."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from consecution.options import Options
from consecution.pacing import RateLimit
from consecution.protocol.dispatch import Sent
from consecution.protocol.step import Held, Step
from consecution.protocol.values import Ack, CreditReturn, FailedItem, Frame, Message, Stage, TaskIndex
from consecution.testing.conservation import check_sent, check_targets
from consecution.testing.process import Crew, TaskProcess
from consecution.testing.scene import Scene
from consecution.testing.trial_plan import TrialPlan
from consecution.testing.world import ItemError, Pace

LANDS = 0.4
"""How likely it is, at each turn, that the oldest of the frames that are held is done."""
LONGEST_SILENCE_S = 0.5
"""After so long a task tells the origins that it has not forgotten the frames that wait."""


class HoldingProcess(TaskProcess):
    """A task whose items take long: it holds any number of frames, and answers them in the order in which they came."""

    def __init__(self, scene: Scene, task: TaskIndex, crew: Crew) -> None:
        super().__init__(scene, task, crew)
        self._flights: deque[Held] = deque()

    def has_work(self) -> bool:
        return self.alive and (bool(self._flights) or super().has_work())

    def _run(self, frame: Frame) -> None:
        held = self._step.take(frame)
        if held is None:
            self._answer(frame, [], None)
        else:
            self._flights.append(held)

    def _work(self) -> None:
        while self._flights and self._scene.rng.random() < LANDS:
            self._land(self._flights.popleft())
        super()._work()

    def _land(self, held: Held) -> None:
        self._node.begin_frame()
        out, errors = (held.out, []) if held.out is not None else self._process(held.items)
        self._answer(held.frame, *self._step.put(held, out, errors, 0.0))

    def _process(self, items: list[Any]) -> tuple[list[Any], list[tuple[Any, BaseException]]]:
        made: list[Any] = []
        errors: list[tuple[Any, BaseException]] = []
        for item in items:
            out: list[Any] = []
            self._node._push_into(out)
            try:
                self._node.process(item)
            except ItemError as error:
                errors.append((item, error))
            else:
                made += out
        return made, errors


class PacedProcess(TaskProcess):
    """A rate limit, in the shell that ships."""

    def __init__(self, scene: Scene, task: TaskIndex, crew: Crew) -> None:
        super().__init__(scene, task, crew)
        shape = self._shape
        assert shape.per_second is not None
        self._host = scene.parts.paced_host(
            TrialPlan(replace(Options(), timeout_s=LONGEST_SILENCE_S), shape),
            task,
            RateLimit(shape.per_second, burst=1 + shape.index % 2),
            self._codec,
            self,
            origin_name=str,
            dispatch=self._dispatch,
            clock=scene.now,
        )
        self._host.step = _WatchedStep(self._step, self)  # type: ignore[assignment]
        self._restless = False

    def has_work(self) -> bool:
        return self.alive and (self._restless or super().has_work())

    def _receive(self, message: Message) -> None:
        self._scene.trace("{} gets {}", self.endpoint, message)
        if isinstance(message, Frame | CreditReturn):
            self._host.receive(message)

    def _work(self) -> None:
        self._restless = self._host.turn()
        self._host.flush()

    def wake(self) -> float | None:
        wait_s = self._host.next_wake_s()
        self._restless = wait_s is not None
        return None if wait_s is None else self._scene.now_s + wait_s


class _WatchedStep:
    """A step whose every part of a frame the oracle hears of."""

    def __init__(self, step: Step, process: PacedProcess) -> None:
        self._step = step
        self._scene = process._scene
        self._shape = process._shape
        self._failed: dict[int, list[FailedItem]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def put_some(self, held: Held, most: int, item_load_s: float) -> tuple[list[Sent], Ack]:
        items = (held.out or [])[:most]
        sent, ack = self._step.put_some(held, most, item_load_s)
        world, oracle = self._scene.world, self._scene.oracles[held.frame.origin]
        check_sent(world, self._shape, items, sent, [f.shown for f in ack.failed if f.stage is Stage.ROUTE])
        check_targets(world, sent)
        for message in sent:
            oracle.sent(message.frame, message.target)
        failed = self._failed.setdefault(id(held.frame), [])
        failed += ack.failed
        if not held.out:
            oracle.stepped(held.frame, failed)
        return sent, ack


KIND_OF_PACE: dict[Pace, type[TaskProcess]] = {
    Pace.AT_ONCE: TaskProcess,
    Pace.HOLDS: HoldingProcess,
    Pace.IN_PARTS: PacedProcess,
}
