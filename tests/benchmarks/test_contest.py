"""The benchmarks work, check their answers, and compare within rounds."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import latency
from benchmarks.__main__ import QUESTIONS
from benchmarks.contest import Outcome, Question, Run, hold, sum_up, table

QUICKER = 200


def make_question(answer: int) -> Question:
    return Question(
        name="identity",
        title="a question",
        unit="items",
        size=100,
        expected=lambda size: answer,
        contestants={"plain loop": lambda size: Outcome(1.0, answer)},
    )


def test_ratios_are_taken_within_each_round() -> None:
    runs = [
        Run("plain loop", 100, 1.0, 1.0, 0.0),
        Run("ours", 100, 0.5, 1.0, 0.9),
        Run("plain loop", 100, 10.0, 10.0, 0.0),
        Run("ours", 100, 5.0, 10.0, 0.0),
    ]

    loop, ours = sum_up(make_question(0), runs)

    assert (loop.ratio, ours.ratio) == (1.0, 2.0)
    assert (ours.least, ours.most) == (20.0, 200.0)
    assert (loop.busy_runs, ours.busy_runs) == (0, 1)
    assert "(1 of 2 beside busy neighbours)" in table(make_question(0), [loop, ours], 2)


def test_a_wrong_answer_is_refused() -> None:
    question = make_question(answer=-1)

    with pytest.raises(ValueError, match="plain loop answered 4950, expected -1"):
        list(hold(question, 100, 1, None))


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_contestant_gives_the_right_answer(name: str, old_root: Path) -> None:
    question: Question = importlib.import_module(f"benchmarks.{name}").QUESTION

    runs = list(hold(question, question.size // QUICKER, 1, old_root))

    assert [run.contestant for run in runs] == list(question.contestants)
    assert all(run.seconds > 0 for run in runs)


def test_latencies_are_told_in_milliseconds() -> None:
    told = latency.report(rounds=1, states=[10]).splitlines()

    assert [line.split("  ")[1] for line in told[1:]] == [
        "first result after run(), four fresh workers",
        "the same, inline",
        "output again after kill -9 of a worker",
        "the same, a durable one with 10 states",
    ]
    assert all(float(line.split("median")[1].split()[0]) > 0 for line in told[1:])
