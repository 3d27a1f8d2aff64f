from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import pytest

from consecution.protocol.origin import FailureEntry, OriginCounts
from consecution.protocol.poison import FrameKey, Verdict
from consecution.protocol.values import FailedItem, Stage, TaskIndex, WorkerIndex
from consecution.runtime import control

TASK, WORKER = TaskIndex(3), WorkerIndex(1)
BEAT = control.Beat(TASK, (1, 2, 3), "process", 10, 20, 1, 0.5, origin=OriginCounts(9, 8, 1, 1, 0, 0), finished=True)
FAILED = FailedItem(TASK, Stage.PROCESS, b"item", "ValueError: no", "Traceback", True, "'item'")
WORDS = [
    control.Wire(7, {WORKER: "ipc:///x/1.1"}),
    control.Replay(after_death=True),
    control.RunEnd(TASK),
    control.Drain(TASK),
    control.StopReading(),
    control.Pause(paused=True),
    control.AtWork(),
    control.TellBeats(),
    control.EndBeats(),
    control.WaitOn(3),
    control.Quit(),
    control.Judged("parse", (Verdict(FrameKey(TASK, 7, (1, 2)), b"#3", "killed by SIGSEGV", "the stack"),)),
    control.Hello(WORKER, "ipc:///x/1.1", 4711),
    control.Began(WORKER),
    control.Switched(WORKER, 7),
    BEAT,
    control.Beats((BEAT,)),
    control.StopAsked(TASK, FailureEntry(1, FAILED, 2, 5, 1, None)),
    control.Ended(TASK, True),
    control.Failed(TASK, "begin", "no", "Traceback", None),
    control.Closed((BEAT,), True, (FailureEntry(1, FAILED, 2, 5, 1, None),)),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: type(word).__name__)
def test_every_word_survives_the_pipe(word: Any) -> None:
    assert pickle.loads(pickle.dumps(word)) == word


def test_no_word_is_left_out_here() -> None:
    defined = {value for _, value in inspect.getmembers(control, dataclasses.is_dataclass)}

    assert {type(word) for word in WORDS} == {value for value in defined if value.__module__ == control.__name__}


@pytest.mark.parametrize("word", WORDS, ids=lambda word: type(word).__name__)
def test_words_cannot_be_changed(word: Any) -> None:
    for field in dataclasses.fields(word):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(word, field.name, None)
