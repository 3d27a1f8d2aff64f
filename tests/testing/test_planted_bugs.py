"""Each rule of the protocol, broken on purpose: the simulator must notice, within so many schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from consecution.protocol.dispatch import Dispatch, Sent, Unsent
from consecution.protocol.ending import Ending
from consecution.protocol.origin import (
    BatchBorn,
    Change,
    FailureEntry,
    FailureKept,
    FailureTaken,
    Head,
    HeadMoved,
    Origin,
    Turn,
)
from consecution.protocol.recovery import Order, OrderReplay, Recovery
from consecution.protocol.step import Held, Step
from consecution.protocol.values import Ack, Action, FailedItem, Frame, FrameId, Stage, TaskIndex
from consecution.runtime.origin_host import OriginHost
from consecution.runtime.paced_host import PacedTaskHost
from consecution.testing import Outcome, run_schedule
from consecution.testing.scene import Parts

FIRST_SEED = 1
"""Odd seeds have stateless tasks only; `test_planted_durable_bugs` has the others."""


def find(parts: Parts, *, within: int, first_seed: int = FIRST_SEED) -> tuple[int, Outcome]:
    """The first schedule that goes wrong with these parts, and how many it took."""
    for number in range(within):
        outcome = run_schedule(first_seed + 2 * number, parts)
        if outcome.problem is not None:
            return number + 1, outcome
    pytest.fail(f"{within} schedules from seed {first_seed} on, and the bug was not found")


class LaunchesBeforeItCommits(OriginHost):
    def turn(self) -> bool:
        self.start_due()
        worked = False
        while turn := self.origin.take_turn():
            worked = True
            for launch in turn.launches:
                self._launch(launch, turn.low)
            if turn.changes:
                self.store.apply(turn.changes)
            for settled in turn.settled:
                self._tell(settled)
        return worked


class TellsBeforeItCommits(OriginHost):
    def turn(self) -> bool:
        self.start_due()
        worked = False
        while turn := self.origin.take_turn():
            worked = True
            for settled in turn.settled:
                self._tell(settled)
            if turn.changes:
                self.store.apply(turn.changes)
            for launch in turn.launches:
                self._launch(launch, turn.low)
        return worked


class SplitsCommits(OriginHost):
    """Commits some changes of a turn in a transaction of their own, after the others."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        apply = self.store.apply

        def split(changes: list[Change]) -> None:
            for part in ([c for c in changes if not self.is_late(c)], [c for c in changes if self.is_late(c)]):
                if part:
                    apply(part)

        self.store.apply = split  # type: ignore[method-assign]

    def is_late(self, change: Change) -> bool:
        raise NotImplementedError


class KeepsFailuresLater(SplitsCommits):
    def is_late(self, change: Change) -> bool:
        return isinstance(change, FailureKept)


class TakesEntriesFirst(SplitsCommits):
    def is_late(self, change: Change) -> bool:
        return isinstance(change, BatchBorn) and change.record.retry is not None and not _is_over_failed(change)


def _is_over_failed(change: BatchBorn) -> bool:
    return change.record.retry is not None and change.record.retry.entry.stage is Stage.FAILED


class HandsOverLater(SplitsCommits):
    """What is given up leaves its place first, and is born over the failed edge in the next commit."""

    def is_late(self, change: Change) -> bool:
        return isinstance(change, BatchBorn) and _is_over_failed(change)


class HandsOverInTheNextTurn(Origin):
    def take_turn(self) -> Turn:
        handed, self._handed = self._handed, {}
        turn = super().take_turn()
        self._handed = handed
        return turn


class LosesWhatItHandsOver(Origin):
    def _bear_handed(self) -> None:
        self._handed.clear()


class KeepsWhatItHandsOver(Origin):
    def _hand_over(self, failed: FailedItem, attempts: int, root: int, held: int, now_s: float) -> None:
        super()._hand_over(failed, attempts, root, held, now_s)
        self._turn.changes.append(FailureKept(FailureEntry(self._next_key, failed, attempts, root, held, None, now_s)))
        self._next_key += 1
        self._failed += 1


class SettlesBeforeTheHandler(Origin):
    """Of a batch whose items are handed over nothing is pending any more."""

    def _is_held(self, failed: FailedItem) -> bool:
        return self._may_retry(failed, 1)


class HandsOverBeforeItsRetries(Origin):
    def _leaves(self, failed: FailedItem, attempts: int) -> bool:
        edges = self._failed_edges
        return edges is not None and failed.stage is not Stage.FAILED and edges.leads_from(failed.task)


class HandsOverForEver(Origin):
    """What fails on a failed edge goes over that edge."""

    def _leaves(self, failed: FailedItem, attempts: int) -> bool:
        return super()._leaves(failed._replace(stage=Stage.PROCESS), attempts)


class RetriesWhatIsParked(Origin):
    def _may_retry(self, failed: FailedItem, attempts: int) -> bool:
        return super()._may_retry(failed._replace(treatment=failed.treatment._replace(action=Action.RETRY)), attempts)


class TriesAsOftenAtEveryNode(Origin):
    def _may_retry(self, failed: FailedItem, attempts: int) -> bool:
        return super()._may_retry(failed._replace(treatment=failed.treatment._replace(retries=None)), attempts)


class HandsOverWhatIsToStop(Origin):
    def _leaves(self, failed: FailedItem, attempts: int) -> bool:
        if failed.treatment.action is Action.STOP:
            failed = failed._replace(treatment=failed.treatment._replace(action=Action.PARK))
        return super()._leaves(failed, attempts)


class AsksToStopAfterTheCommit(OriginHost):
    def _turn_once(self) -> bool:
        asked: list[Any] = []
        tell, self._on_stop = self._on_stop, lambda *told: asked.append(told)
        try:
            return super()._turn_once()
        finally:
            self._on_stop = tell
            for told in asked if tell is not None else ():
                tell(*told)


class NeverAsksToStop(Origin):
    def take_turn(self) -> Turn:
        turn = super().take_turn()
        turn.stops.clear()
        return turn


class ReadsOnWhenStopped(Origin):
    def room(self, left: float = math.inf) -> int:
        stopped, self.stopped = self.stopped, False
        try:
            return super().room(left)
        finally:
            self.stopped = stopped


class TakesEntriesLater(SplitsCommits):
    def is_late(self, change: Change) -> bool:
        return isinstance(change, FailureTaken)


class MovesThePositionLater(SplitsCommits):
    def is_late(self, change: Change) -> bool:
        return isinstance(change, HeadMoved)


class DecidesInAnyOrder(Origin):
    def _decide(self, now_s: float) -> None:
        complete = [seq for seq, batch in self._batches.items() if batch.complete]
        for seq in complete:
            before = dict(self._batches)
            self._batches = {seq: before.pop(seq)}
            super()._decide(now_s)
            self._batches = before


class CountsAcksOfAnyGeneration(Origin):
    def acked(self, ack: Ack, now_s: float, sender: TaskIndex = TaskIndex(-1)) -> None:
        batch = self._batches.get(ack.seq)
        super().acked(replace(ack, generation=batch.generation) if batch else ack, now_s, sender)


class CountsRepeatedAcks(Origin):
    def acked(self, ack: Ack, now_s: float, sender: TaskIndex = TaskIndex(-1)) -> None:
        super().acked(ack, now_s, sender)
        for batch in self._batches.values():
            batch.acked.clear()


class SaysLowTooEarly(Origin):
    @property
    def low(self) -> int:
        return self._next_seq


class ForgetsItsGeneration(Origin):
    def _head(self) -> Head:
        return replace(super()._head(), generation=0)


class ForgetsTheNextSeq(Origin):
    def _head(self) -> Head:
        return replace(super()._head(), next_seq=self.low)


class LooksForZeroTooEarly(Origin):
    def acked(self, ack: Ack, now_s: float, sender: TaskIndex = TaskIndex(-1)) -> None:
        batch = self._batches.get(ack.seq)
        if batch is not None:
            batch.launched = True
        super().acked(ack, now_s, sender)

    def _decide(self, now_s: float) -> None:
        for batch in self._batches.values():
            batch.complete = not batch.xor
        super()._decide(now_s)


class EndsWithRetriesWaiting(Origin):
    @property
    def settled(self) -> bool:
        return not (self._batches or self._turn or self._head_moved)


class CountsDeathsAsAttempts(Origin):
    def replay(self, now_s: float) -> int:
        for batch in self._batches.values():
            mark = batch.record.retry
            if mark is not None:
                batch.record = replace(batch.record, retry=replace(mark, attempts=mark.attempts + 1))
        return super().replay(now_s)


class KeepsFailuresOfEveryExecution(Origin):
    def _launch(self, batch: Any, now_s: float) -> None:
        failed = list(batch.failed)
        super()._launch(batch, now_s)
        batch.failed = failed


class CompletesWhatWaits(Origin):
    def _hold(self, root: int, held: int) -> None:
        super()._hold(root, 0)


class RunsUnderTheSameGeneration(Origin):
    def _run_again(self, batches: list[Any], now_s: float) -> int:
        if self.generation:
            self.generation -= 1
        return super()._run_again(batches, now_s)


class UsesAnIdTwice(Dispatch):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.make_id = lambda: FrameId(4711)


class RunsRepeats(Step):
    def _is_repeat(self, frame: Frame) -> bool:
        return False


class LosesNeighbours(Step):
    """What a frame has pushed goes with the item that raises."""

    def _process(self, frame: Frame, items: list[Any], failed: list[FailedItem]) -> list[Any]:
        out = super()._process(frame, items, failed)
        return [] if failed else out


class AcksTheWholeAtTheFirstPart(Step):
    """What is let through in parts counts as done when the first has left."""

    def put_some(self, held: Held, most: int, item_load_s: float) -> tuple[list[Sent], Ack]:
        sent, ack = super().put_some(held, most, item_load_s)
        if held.out:
            ack = replace(ack, xor=ack.xor ^ held.open_id)
            held.open_id = 0
        return sent, ack


class KeepsTheIdOfTheRest(Step):
    """Each acknowledgement of a part looks like the last one, if nothing has left in between."""

    def put_some(self, held: Held, most: int, item_load_s: float) -> tuple[list[Sent], Ack]:
        before = held.open_id
        sent, ack = super().put_some(held, most, item_load_s)
        if held.out:
            ack = replace(ack, xor=ack.xor ^ held.open_id ^ before)
            held.open_id = before
        return sent, ack


class NumbersEachPartAnew(Dispatch):
    """Two parts of a frame take the same path."""

    def send(
        self, items: Sequence[Any], cause: Frame, after: int = 0, made_of: int | None = None
    ) -> tuple[list[Sent], list[Unsent]]:
        return super().send(items, cause, made_of=made_of)


class WaitsInTheOldPlace(PacedTaskHost):
    """A frame that is not needed any more stays in line, and its successor does not come in."""

    def _put_in_line(self, held: Held) -> None:
        new = held.frame
        old = [waiting.frame for waiting in self._waiting]
        if any((o.origin, o.seq, o.path) == (new.origin, new.seq, new.path) for o in old):
            self._answer(new, [], None)
        else:
            self._waiting.append(held)


class ReplaysBeforeAllHaveSwitched(Recovery):
    def started(self, task: TaskIndex, endpoint: str) -> list[Order]:
        orders = super().started(task, endpoint)
        if orders:
            self.replayed_version = self.version
            orders.append(OrderReplay(self.version))
        return orders


class EndsAllAtOnce(Ending):
    @property
    def due(self) -> list[TaskIndex]:
        return sorted(task for stage in self._stages for task in stage)


PLANTED: list[tuple[str, Parts, str, int]] = [
    ("launch before commit", Parts(host=LaunchesBeforeItCommits), "not in the journal|the journal knows", 10),
    ("told before commit", Parts(host=TellsBeforeItCommits), "told settled, but is still open", 10),
    ("failures kept after the decision", Parts(host=KeepsFailuresLater), "not kept", 50),
    ("retry born after its entry was taken", Parts(host=TakesEntriesFirst), "no batch was born", 50),
    ("retry born before its entry was taken", Parts(host=TakesEntriesLater), "was not taken in the same", 50),
    ("position after the batch", Parts(host=MovesThePositionLater), "the head says", 10),
    ("decisions in any order", Parts(origin=DecidesInAnyOrder), "while the lowest open", 50),
    ("acks without generation", Parts(origin=CountsAcksOfAnyGeneration), "stuck", 200),
    ("repeated acks counted", Parts(origin=CountsRepeatedAcks), "stuck|failures kept", 50),
    ("low before the decision", Parts(origin=SaysLowTooEarly), "stuck", 50),
    ("generation not persisted", Parts(origin=ForgetsItsGeneration), "generation", 10),
    ("generation not raised", Parts(origin=RunsUnderTheSameGeneration), "under generation", 50),
    ("next seq not persisted", Parts(origin=ForgetsTheNextSeq), "the head says next seq", 10),
    (
        "zero before the own step",
        Parts(origin=LooksForZeroTooEarly),
        "before it was launched|never processed|not kept",
        500,
    ),
    ("end with retries waiting", Parts(origin=EndsWithRetriesWaiting), "said to be over", 50),
    ("deaths counted as attempts", Parts(origin=CountsDeathsAsAttempts), "failures kept", 500),
    ("failures of thrown-away executions", Parts(origin=KeepsFailuresOfEveryExecution), "failures kept", 200),
    ("waiting items completed", Parts(origin=CompletesWhatWaits), "items are pending", 50),
    ("ids used twice", Parts(dispatch=UsesAnIdTwice), "never processed|failures kept", 10),
    ("repeats run again", Parts(step=RunsRepeats), "same frame twice|stuck|two frames", 50),
    ("neighbours of a failing item lost", Parts(step=LosesNeighbours), "and sent|had", 50),
    ("whole frame done at its first part", Parts(step=AcksTheWholeAtTheFirstPart), "never processed|stuck", 100),
    ("one id for each rest", Parts(step=KeepsTheIdOfTheRest), "stuck|has not ended", 100),
    ("one path for all parts", Parts(dispatch=NumbersEachPartAnew), "two frames reached", 200),
    ("old frames keep their place", Parts(paced_host=WaitsInTheOldPlace), "stuck|has not ended", 500),
    ("replay before all have switched", Parts(recovery=ReplaysBeforeAllHaveSwitched), "stuck", 50),
    ("nodes end in any order", Parts(ending=EndsAllAtOnce), "before the nodes above it", 100),
    ("handed over after the decision", Parts(host=HandsOverLater), "over failed edges went", 50),
    ("handed over in the next turn", Parts(origin=HandsOverInTheNextTurn), "over failed edges went", 50),
    ("lost on the way to the handler", Parts(origin=LosesWhatItHandsOver), "over failed edges went", 50),
    ("kept and handed over", Parts(origin=KeepsWhatItHandsOver), "failures kept", 50),
    ("settled before the handler", Parts(origin=SettlesBeforeTheHandler), "over failed edges went", 50),
    ("parked and tried again", Parts(origin=RetriesWhatIsParked), "failures kept", 300),
    ("the same tries at every node", Parts(origin=TriesAsOftenAtEveryNode), "failures kept", 300),
    ("handed over and not stopped", Parts(origin=HandsOverWhatIsToStop), "over failed edges|failures kept", 200),
    ("asked to stop after the commit", Parts(host=AsksToStopAfterTheCommit), "before that was told", 300),
    ("never asked to stop", Parts(origin=NeverAsksToStop), "before that was told", 300),
    ("read on when stopped", Parts(origin=ReadsOnWhenStopped), "had been told to stop", 300),
    ("handed over before its retries", Parts(origin=HandsOverBeforeItsRetries), "failures kept", 50),
]


@pytest.mark.parametrize(("parts", "problem", "within"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_planted_bug_is_found(parts: Parts, problem: str, within: int) -> None:
    _, outcome = find(parts, within=within)

    assert re.search(problem, outcome.problem or ""), outcome.problem


def measure(seeds: int = 5) -> None:
    """How many schedules each bug takes: `python -m tests.testing.test_planted_bugs`."""
    for name, parts, problem, within in PLANTED:
        took = []
        for start in range(seeds):
            count, outcome = find(parts, within=5000, first_seed=10_000 * start + FIRST_SEED)
            took.append(count if re.search(problem, outcome.problem or "") else f"{count}: {outcome.problem}")
        print(f"{name:40} {within:5} {took}", flush=True)


if __name__ == "__main__":
    measure()
