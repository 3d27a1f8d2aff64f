"""The contest of sources and sinks works, and says first where the loop is ahead."""

from __future__ import annotations

import pytest

from benchmarks import sources_sinks
from benchmarks.contest import Run
from benchmarks.sources_sinks import MODES, POSTGRES, QUESTION, WORKS, do, expected
from tests.sinks.cluster import Unavailable

SIZE = 3000


@pytest.mark.parametrize("name", WORKS)
def test_the_loop_and_ours_have_the_same_answer(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "PostgreSQL" in name:
        monkeypatch.setenv(POSTGRES, request.getfixturevalue("postgres").url)
    for mode in (None, "inline none"):
        found = do(WORKS[name], mode, SIZE)

        assert found.answer == expected(SIZE)
        assert found.seconds > 0


@pytest.mark.parametrize("name", ["files, csv", "tcp, lines", "SqlSink, SQLite"])
def test_so_it_is_in_processes(name: str) -> None:
    assert do(WORKS[name], "robust", SIZE).answer == expected(SIZE)


def test_without_a_server_what_needs_it_is_left_out_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable() -> None:
        raise Unavailable("no initdb here")

    monkeypatch.setattr(sources_sinks, "Cluster", unavailable)
    monkeypatch.setattr(sources_sinks, "contest", lambda names, size, rounds: {name: {} for name in names})
    monkeypatch.setattr(sources_sinks, "page", ", ".join)

    assert sources_sinks.main(["sql, ", "--quick"]) == 0

    told = capsys.readouterr()
    assert told.out.splitlines()[0] == "sql, SQLite"
    assert "left out what needs PostgreSQL: no initdb here" in told.err


def runs(who: str, *seconds: float) -> list[Run]:
    return [Run(who, 100, each, 1.0, 0.0) for each in seconds]


def test_what_is_slower_than_the_loop_comes_first() -> None:
    level = {mode: runs(mode, 1.0, 2.0, 1.0) for mode in MODES}
    slow = {**level, "robust": runs("robust", 4.0, 2.0, 2.0)}
    loop = runs("loop", 1.0, 1.0, 1.0)

    told = sources_sinks.page({"files, csv": {"loop": loop, **level}, "Csv": {"loop": loop, **slow}})

    first, second = told.split("\n\n**")
    assert first.splitlines()[-1] == "| Csv | 100 | 1.00 (0.50 to 1.00) | 0.50 (0.25 to 0.50) |"
    assert second.splitlines()[-1].startswith("| files, csv | 100 | 1.00 (0.50 to 1.00) |")


def test_every_work_has_a_loop_and_all_modes() -> None:
    assert len(QUESTION.contestants) == len(WORKS) * (1 + len(MODES))
