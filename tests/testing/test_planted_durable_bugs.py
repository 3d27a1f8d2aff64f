"""Each rule of staging, decision and application, broken on purpose: the simulator must notice.

Those of the list at the end of section 4 of the design, and some beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from consecution.protocol.dispatch import Sent
from consecution.protocol.durable import Application, Durable, DurableTurn, FrameStaged
from consecution.protocol.origin import BatchForgotten, Decision, Head, Launch, Origin
from consecution.protocol.step import Step
from consecution.protocol.values import Ack, Acks, Confirm, Confirms, FailedItem, Frame, Go, TaskIndex
from consecution.runtime.appliers import TransactionApplier
from consecution.runtime.durable_host import DurableHost
from consecution.runtime.durable_store import CommittedOutside, EndRecorded
from consecution.runtime.origin_host import OriginHost
from consecution.testing.durable_store import DurableWriter
from consecution.testing.scene import Parts
from tests.testing import test_planted_bugs as stateless

FIRST_SEED = 0
"""Even seeds have durable tasks."""


# -- commit, then answer -------------------------------------------------------------------------


class AcksBeforeItCommits(DurableHost):
    def take_changes(self) -> list[Any]:
        changes = super().take_changes()
        for origin, ack in self._answers.acks:
            self._outbox.send(origin, Acks(self.task, [ack]))
        self._answers.acks = []
        return changes


class StagesInMemoryOnly(DurableHost):
    """Acknowledges in time; but nothing of it is on disk."""

    def take_changes(self) -> list[Any]:
        return [change for change in super().take_changes() if not isinstance(change, FrameStaged)]


class ConfirmsBeforeItCommits(DurableHost):
    def take_changes(self) -> list[Any]:
        changes = super().take_changes()
        for origin, confirm in self._answers.confirms:
            self._outbox.send(origin, Confirms(self.task, [confirm]))
        self._answers.confirms = []
        return changes


class TellsGosBeforeItCommits(OriginHost):
    def _turn_once(self) -> bool:
        turn = self.origin.take_turn()
        self._send_gos(turn.gos)
        turn.gos = []
        self.origin._turn, kept = turn, self.origin._turn
        assert not kept
        return super()._turn_once()


class BearsOutputsLater(DurableHost):
    """What was pushed becomes batches in a commit of their own."""

    def begin(self) -> None:
        self._later: list[Any] = []
        super().begin()

    def _give_birth(self, pushed: list[Any]) -> None:
        self._later += pushed

    def committed(self) -> bool:
        later, self._later = self._later, []
        super()._give_birth(later)
        return super().committed()


class DoesNotWaitForTheDisk(DurableWriter):
    """Commits are there for other processes at once, and on disk only at the end of a good day."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        disk = self._disk
        self._before = {name: _copied(value) for name, value in vars(disk).items()}

    def power_lost(self) -> None:
        vars(self._disk).update(self._before)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, dict) else value


# -- order and generations -----------------------------------------------------------------------


class AppliesAnyGeneration(Durable):
    def _frames_of(self, origin: TaskIndex, incoming: Any, go: Go) -> tuple[Frame, ...]:
        return tuple(sorted(incoming.staged.get(go.seq, {}).values(), key=lambda frame: frame.path))


class AppliesFramesAsTheyCame(Durable):
    def _frames_of(self, origin: TaskIndex, incoming: Any, go: Go) -> tuple[Frame, ...]:
        return tuple(f for f in incoming.staged.get(go.seq, {}).values() if f.generation == go.generation)


class DoesNotWaitForAfter(Durable):
    def go(self, origin: TaskIndex, go: Go) -> None:
        super().go(origin, go._replace(after=-1))


class SaysNothingOfAfter(Origin):
    def _order_gos(self, seq: int, generation: int, participants: Iterable[tuple[TaskIndex, int]]) -> None:
        super()._order_gos(seq, generation, participants)
        self._turn.gos = [(task, go._replace(after=-1)) for task, go in self._turn.gos]


class IgnoresLow(Durable):
    def _raise_low(self, incoming: Any, low: int) -> None:
        """Nothing is ever too old."""


class ForgetsTheLedger(Durable):
    def __init__(self, ledger: Any, staged: Iterable[Frame], *, applies_at_once: bool) -> None:
        super().__init__({}, staged, applies_at_once=applies_at_once)


class ConfirmsOnce(Durable):
    """Does not answer a ``go`` again whose batch the ledger has."""

    def go(self, origin: TaskIndex, go: Go) -> None:
        if go.seq > self.applied(origin):
            super().go(origin, go)


class AppliesEveryGo(Durable):
    """Does not look into the ledger."""

    def go(self, origin: TaskIndex, go: Go) -> None:
        self._incoming(origin).applied = min(self._incoming(origin).applied, go.seq - 1)
        super().go(origin, go)


class TellsGosOnce(Origin):
    def _repeat_gos(self, unconfirmed: list[Any], now_s: float) -> None:
        """They were told."""


class ForgetsAtTheFirstConfirm(Origin):
    def confirmed(self, sender: TaskIndex, confirms: Iterable[Confirm], now_s: float) -> None:
        for confirm in confirms:
            decided = self._decided.get(confirm.seq)
            for task in list(decided.waiting) if decided is not None else []:
                super().confirmed(task, [confirm], now_s)


class ForgetsInMemoryOnly(Origin):
    """What is to ride with the next commit never does."""

    def take_forgotten(self) -> list[BatchForgotten]:
        super().take_forgotten()
        return []


class ForgetsWithTheDecision(Origin):
    """Does not wait for the confirms."""

    def _await_confirms(self, decision: Decision, size_bytes: int, now_s: float) -> None:
        super()._await_confirms(decision, size_bytes, now_s)
        self._forgotten.append(BatchForgotten(decision.seq))


class ForgetsParticipantsOfOldExecutions(Origin):
    """Whoever ever staged something of a batch takes part in it."""

    def _launch(self, batch: Any, now_s: float) -> None:
        participants = dict(batch.participants)
        super()._launch(batch, now_s)
        batch.participants = participants


class ForgetsItsGeneration(Origin):
    def _head(self) -> Head:
        return replace(super()._head(), generation=0)


# -- failing items and the end -------------------------------------------------------------------


class EndsBeforeItsRetries(Origin):
    @property
    def has_own_retries(self) -> bool:
        return False


class ForgetsItHasEnded(DurableHost):
    def end(self) -> None:
        self._end_done = False
        super().end()


class RecordsTheEndFirst(DurableHost):
    def end(self) -> None:
        if not self._end_done and self.node._wants_end():
            self._own.store.apply([EndRecorded()])
        super().end()


class KeepsStateOfFailedItems(DurableHost):
    def begin(self) -> None:
        super().begin()
        applier: Any = self._applier
        applier._inner._undo_item = applier._inner._keep_item if hasattr(applier._inner, "_keep_item") else None


class LosesFailuresOfInputs(DurableHost):
    def _fail(self, failure: Any) -> None:
        """Not worth a word."""


class CountsTriesFromOne(Origin):
    def retry_of(self, seq: int) -> None:
        return None


class KeepsTheInbox(Durable):
    def finish(self, only: TaskIndex) -> None:
        """The end is the end."""


class DropsOnlyWhatItApplies(Durable):
    """Frames of thrown-away executions of an applied batch stay."""

    def apply(self, application: Application) -> None:
        staged = self._origins[application.origin].staged[application.seq]
        for frame_id in [f.frame_id for f in staged.values() if f.generation != application.generation]:
            del staged[frame_id]
        super().apply(application)


# -- decided below -------------------------------------------------------------------------------


class AsksNobody(OriginHost):
    """A batch that runs again goes its new way, and nobody is asked whether its first execution counts."""

    def _fences(self, cause: Frame) -> list[Sent]:
        return []


class DecidesWhateverIsWhole(Durable):
    """Batches before it may yet come."""

    @staticmethod
    def _is_next(incoming: Any, frame: Frame) -> bool:
        return frame.seq not in incoming.gos


class DecidesAfterAFence(Durable):
    @staticmethod
    def _runs_again(incoming: Any, frame: Frame) -> bool:
        return False


class DecidesAndLetsAnotherDecide(Durable):
    """It acknowledges a later execution of what it has decided, too."""

    def stage(self, frame: Frame, failed: tuple[FailedItem, ...] = ()) -> bool:
        incoming = self._incoming(frame.origin)
        decided, incoming.decided = incoming.decided, {}
        try:
            return super().stage(frame, failed)
        finally:
            incoming.decided |= decided


class KeepsItToItself(Durable):
    """It applies what it has decided, and does not answer whoever asks."""

    def stage(self, frame: Frame, failed: tuple[FailedItem, ...] = ()) -> bool:
        applied = self.applied(frame.origin)
        return frame.seq > applied and super().stage(frame, failed)


class ForgetsWhatItHasDecided(Durable):
    def _decide_again(self, incoming: Any) -> None:
        """After a crash it waits for its origin."""


class ForgetsWhatComesBefore(Durable):
    @staticmethod
    def _after(frame: Frame) -> int:
        return -1


class AppliesAnythingAtOnce(Durable):
    """Sinks that keep what they are given, whatever dies, are given what no commit has decided."""

    def __init__(self, *held: Any, applies_at_once: bool) -> None:
        super().__init__(*held, applies_at_once=True)


class StagesNothingThatIsLate(Durable):
    """What it has decided and not applied by then is in no commit."""

    def take_turn(self) -> DurableTurn:
        late, self._unstaged = self._unstaged, {}
        turn = super().take_turn()
        self._late.extend(late)
        return turn


class DecidesWithoutTheRest(Step):
    """A part of a batch passes for the whole of it."""

    def _close(self, frame: Frame, *args: Any, **kwargs: Any) -> Any:
        sent, ack = super()._close(frame, *args, **kwargs)
        for message in sent:
            message.frame.whole = frame.whole
        return sent, ack


class HandsItsIdToOneOfMany(Step):
    """Says nothing of a whole that has become several frames, as if it were the first of them."""

    def run(self, frame: Frame) -> Any:
        sent, ack = super().run(frame)
        if frame.whole and len(sent) > 1:
            sent[0].frame.frame_id = frame.frame_id
            return sent, None
        return sent, ack


class HandsItsIdOnAndTells(Step):
    """The acknowledgement is that of a frame with an id of its own."""

    def run(self, frame: Frame) -> Any:
        sent, ack = super().run(frame)
        if ack is None and sent:
            ack = Ack(frame.seq, frame.generation, frame.frame_id, 0, ())
        return sent, ack


class SendsAPartAsTheWhole(OriginHost):
    def _launch(self, launch: Launch, low: int) -> None:
        outbox, self._outbox = self._outbox, _Marking(self._outbox)
        super()._launch(launch, low)
        self._outbox = outbox


class _Marking:
    """Marks what an origin sends as the whole of its batch."""

    def __init__(self, outbox: Any) -> None:
        self._outbox = outbox

    def send(self, target: TaskIndex, message: Any) -> None:
        if isinstance(message, Frame) and not message.is_fence:
            message.whole = True
        self._outbox.send(target, message)


class TakesALaterExecutionForTheFirst(OriginHost):
    def _launch(self, launch: Launch, low: int) -> None:
        super()._launch(replace(launch, again=False), low)


class KeepsParticipantsOfLaterExecutions(Origin):
    def _decided_below(self, batch: Any, load_s: float, now_s: float) -> None:
        participants, self._decide = batch.participants, lambda now_s: None  # type: ignore[method-assign]
        super()._decided_below(batch, load_s, now_s)
        del self._decide
        batch.participants = participants
        self._decide(now_s)


class LaunchesWhatIsDecidedBelow(Origin):
    def _decided_below(self, batch: Any, load_s: float, now_s: float) -> None:
        batch.launched = True
        super()._decided_below(batch, load_s, now_s)


# -- stores elsewhere ----------------------------------------------------------------------------


class IgnoresTheRedo(TransactionApplier):
    """After a crash between the two commits it goes on as if nothing were."""

    def open(self) -> None:
        self._sink.open()


class CommitsOutsideLast(TransactionApplier):
    def prepare(self, changes: list[Any]) -> None:
        self._number = self._store.outside_number + 1
        self._redo: Any = self._store.redo_of(changes)
        changes.append(CommittedOutside(self._number))

    def committed(self) -> None:
        self._sink.commit(self._owner, self._number, self._redo)


class LeavesTheEndOfTheFile(DurableHost):
    def begin(self) -> None:
        self.node.cut_to = lambda end: None  # type: ignore[attr-defined]
        super().begin()


# -- timers --------------------------------------------------------------------------------------


class TicksOnAfterTheEnd(DurableHost):
    def end(self) -> None:
        timer = self._timer
        self._timer = self._make_timer(None)
        super().end()
        self._timer = timer


class TicksAgainAfterARestart(DurableHost):
    """That it has ended is not heeded; or, where the node has no end of its own, it is not even on record."""

    def begin(self) -> None:
        super().begin()
        self._timer = self._make_timer(self._timer_s)


class TicksBetweenReplayAndDrain(DurableHost):
    """A new incarnation hears only after the replay that the run is stopping."""

    _drain_heard = False

    def drain(self) -> None:
        if self.origin.room():
            super().drain()
        else:
            self._drain_heard = True

    def turn(self) -> bool:
        worked = super().turn()
        if self._drain_heard and self.origin.room():
            self._drain_heard = False
            super().drain()
        return worked


class LosesWhatItsTimerPushes(DurableHost):
    def _tick(self) -> bool:
        bear = self._give_birth
        self._give_birth = lambda pushed: None  # type: ignore[method-assign]
        try:
            return super()._tick()
        finally:
            self._give_birth = bear  # type: ignore[method-assign]


class LeavesTicksOutOfTheCommit(DurableHost):
    """What a tick has changed is written with the next group."""

    def _tick(self) -> bool:
        applied = self._applied
        ticked = super()._tick()
        self._applied = applied
        return ticked


PLANTED: list[tuple[str, Parts, str, int]] = [
    ("ack before staging", Parts(durable_host=AcksBeforeItCommits), "not in its inbox", 10),
    ("staging in memory only", Parts(durable_host=StagesInMemoryOnly), "not in its inbox", 10),
    ("go before decision", Parts(host=TellsGosBeforeItCommits), "was sent to task", 10),
    ("confirm before apply", Parts(durable_host=ConfirmsBeforeItCommits), "and has not committed it", 10),
    ("outputs after the state", Parts(durable_host=BearsOutputsLater), "without the batches of these", 10),
    ("decisions in any order", Parts(origin=stateless.DecidesInAnyOrder), "while the lowest open", 50),
    ("acks without generation", Parts(origin=stateless.CountsAcksOfAnyGeneration), "stuck", 200),
    ("go without generation", Parts(durable=AppliesAnyGeneration), "bound for it were", 200),
    ("frames as they came", Parts(durable=AppliesFramesAsTheyCame), "bound for it were", 50),
    ("generation not persisted", Parts(origin=ForgetsItsGeneration), "generation", 50),
    ("after not heeded", Parts(durable=DoesNotWaitForAfter), "before batches", 600),
    ("after not told", Parts(origin=SaysNothingOfAfter), "before batches", 600),
    ("low not heeded", Parts(durable=IgnoresLow), "was told low", 600),
    ("low before the application", Parts(origin=stateless.SaysLowTooEarly), "stuck", 50),
    ("no ledger", Parts(durable=ForgetsTheLedger), "found 0 frames|a second time|was decided as", 50),
    ("ledger not looked at", Parts(durable=AppliesEveryGo), "found 0 frames|a second time", 50),
    ("no redo", Parts(transaction_applier=IgnoresTheRedo), "the database holds", 500),
    ("commit elsewhere last", Parts(transaction_applier=CommitsOutsideLast), "the database|transactions of", 1000),
    ("file not cut", Parts(durable_host=LeavesTheEndOfTheFile), "the file holds", 500),
    ("go not repeated", Parts(origin=TellsGosOnce), "stuck|has not ended", 50),
    ("confirm not repeated", Parts(durable=ConfirmsOnce), "stuck", 200),
    ("forgotten at the first confirm", Parts(origin=ForgetsAtTheFirstConfirm), "has not applied it", 50),
    ("forgotten in memory only", Parts(origin=ForgetsInMemoryOnly), "told settled, but|said to be over", 50),
    ("forgotten with the decision", Parts(origin=ForgetsWithTheDecision), "was forgotten, and", 10),
    ("participants of old executions", Parts(origin=ForgetsParticipantsOfOldExecutions), "was decided as", 50),
    (
        "replay before all have switched",
        Parts(recovery=stateless.ReplaysBeforeAllHaveSwitched),
        "stuck|said to be over",
        50,
    ),
    ("retry born after its entry was taken", Parts(host=stateless.TakesEntriesFirst), "no batch was born", 50),
    ("retry born before its entry was taken", Parts(host=stateless.TakesEntriesLater), "was not taken in the same", 50),
    ("handed over after the decision", Parts(host=stateless.HandsOverLater), "over failed edges went", 100),
    ("lost on the way to the handler", Parts(origin=stateless.LosesWhatItHandsOver), "over failed edges went", 100),
    ("kept and handed over", Parts(origin=stateless.KeepsWhatItHandsOver), "failures kept", 100),
    ("handed over for ever", Parts(origin=stateless.HandsOverForEver), "failures kept", 1000),
    ("parked and tried again", Parts(origin=stateless.RetriesWhatIsParked), "failures kept", 200),
    ("the same tries at every node", Parts(origin=stateless.TriesAsOftenAtEveryNode), "failures kept", 200),
    ("asked to stop after the commit", Parts(host=stateless.AsksToStopAfterTheCommit), "before that was told", 200),
    ("never asked to stop", Parts(origin=stateless.NeverAsksToStop), "before that was told", 200),
    ("next seq not persisted", Parts(origin=stateless.ForgetsTheNextSeq), "the head says next seq", 10),
    ("deaths counted as attempts", Parts(origin=stateless.CountsDeathsAsAttempts), "failures kept", 500),
    (
        "end with retries waiting",
        Parts(origin=stateless.EndsWithRetriesWaiting),
        "said to be over|the store is damaged",
        50,
    ),
    ("end before its own retries", Parts(origin=EndsBeforeItsRetries), "ran its end while", 50),
    ("end run twice", Parts(durable_host=ForgetsItHasEnded), "has run its end twice", 200),
    ("end recorded first", Parts(durable_host=RecordsTheEndFirst), "not one commit", 50),
    ("nodes end in any order", Parts(ending=stateless.EndsAllAtOnce), "said to be over|stuck|said to be finished", 100),
    (
        "state of failed items kept",
        Parts(durable_host=KeepsStateOfFailedItems),
        "the (state|attributes) of task|its state gives",
        200,
    ),
    ("failed inputs lost", Parts(durable_host=LosesFailuresOfInputs), "failures kept", 50),
    ("tries counted from one", Parts(origin=CountsTriesFromOne), "failures kept", 50),
    ("timer not stopped by the end", Parts(durable_host=TicksOnAfterTheEnd), "ticks after its end", 200),
    ("timer begun again after the end", Parts(durable_host=TicksAgainAfterARestart), "ticks after its end", 2000),
    ("told to drain after the replay", Parts(durable_host=TicksBetweenReplayAndDrain), "said to be over", 2000),
    (
        "pushes of a timer lost",
        Parts(durable_host=LosesWhatItsTimerPushes),
        "without the batches of these|it pushed",
        50,
    ),
    ("ticks without a commit", Parts(durable_host=LeavesTicksOutOfTheCommit), "the attributes of task", 200),
    ("nobody asked", Parts(host=AsksNobody), "no decision of it|applies generation|was decided as", 200),
    ("decided out of order", Parts(durable=DecidesWhateverIsWhole), "before batches|never processed|stuck", 50),
    ("decided twice", Parts(durable=DecidesAndLetsAnotherDecide), "was decided as|applies generation", 200),
    ("decided and not told", Parts(durable=KeepsItToItself), "stuck|has not ended", 50),
    ("decided and forgotten", Parts(durable=ForgetsWhatItHasDecided), "a sink got", 3000),
    ("neither applied nor staged", Parts(durable=StagesNothingThatIsLate), "not in its inbox", 200),
    ("decided in part, by a step", Parts(step=DecidesWithoutTheRest), "never processed", 200),
    ("id handed on to one of many", Parts(step=HandsItsIdToOneOfMany), "was decided as|never processed|stuck", 300),
    ("id handed on, and told", Parts(step=HandsItsIdOnAndTells), "never processed", 100),
    ("decided in part, by its origin", Parts(host=SendsAPartAsTheWhole), "never processed", 50),
    ("decided once more", Parts(host=TakesALaterExecutionForTheFirst), "decides batch|applies batch", 200),
    ("participants of later executions", Parts(origin=KeepsParticipantsOfLaterExecutions), "was decided as", 200),
    ("launched after it was decided below", Parts(origin=LaunchesWhatIsDecidedBelow), "is not in the journal", 200),
    ("inbox kept at the end", Parts(durable=KeepsTheInbox), "frames lie in the inbox", 500),
    ("thrown-away frames kept", Parts(durable=DropsOnlyWhatItApplies), "frames lie in the inbox|was told low", 200),
]


RARE: list[tuple[str, Parts, str, int]] = [
    (
        "commits that are not synced",
        Parts(store=DoesNotWaitForTheDisk),
        "the store is damaged|the books say|restore both from",
        60,
    ),
    ("decided after a fence", Parts(durable=DecidesAfterAFence), "applies generation", 2_000),
    ("applied before it is decided", Parts(durable=AppliesAnythingAtOnce), "a sink got", 10_000),
    ("decided and not in its turn", Parts(durable=ForgetsWhatComesBefore), "before batches", 2 * 1_800),
]
"""Those that take thousands of schedules, or have other symptoms before, and a seed from which it is not far."""


@pytest.mark.parametrize(("parts", "problem", "within"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_planted_bug_is_found(parts: Parts, problem: str, within: int) -> None:
    _, outcome = stateless.find(parts, within=within, first_seed=FIRST_SEED)

    assert re.search(problem, outcome.problem or ""), outcome.problem


@pytest.mark.parametrize(("parts", "problem", "seed"), [p[1:] for p in RARE], ids=[p[0] for p in RARE])
def test_a_rare_bug_is_found(parts: Parts, problem: str, seed: int) -> None:
    _, outcome = stateless.find(parts, within=300, first_seed=seed)

    assert re.search(problem, outcome.problem or ""), outcome.problem


def measure(seeds: int = 5, names: str = "") -> None:
    """How many schedules each bug takes: `python -m tests.testing.test_planted_durable_bugs`."""
    for name, parts, problem, within in PLANTED:
        took = []
        for start in range(seeds if re.search(names, name) else 0):
            count, outcome = stateless.find(parts, within=3000, first_seed=10_000 * start + FIRST_SEED)
            matches = re.search(problem, outcome.problem or "")
            took.append(count if matches and problem else f"{count}: {(outcome.problem or '')[-150:]}")
        print(f"{name:40} {within:5} {took}", flush=True)


if __name__ == "__main__":
    measure()
