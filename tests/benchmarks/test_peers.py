"""The contest beside other tools: its plumbing, its rule for busy neighbours, its page and chart."""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.neighbours import watched
from benchmarks.peers import __main__ as command
from benchmarks.peers import chart, environments, page, race
from benchmarks.peers import task as tasks
from benchmarks.peers.child import percentiles_ms
from benchmarks.peers.field import CONTESTANTS, LOOP, OLD, OURS, POOL, ROBUST, WORKS, Contestant, Tool, Work
from benchmarks.peers.race import Run
from benchmarks.peers.record import Record

BY_NAME = {work.name: work for work in WORKS}
SIZES = {
    "identity": 2000,
    "long": 20_000,
    "words": 500,
    "durable": 500,
    "cpu": 50,
    "airports": 200,
    "latency": 200,
    "kill": 1000,
}
PLAIN = [c for c in CONTESTANTS if not c.tool.requirements and c.tool is not OLD]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(contestant: str, work: str, figure: float, others: float = 0.0, number: int = 0, **told: Any) -> Run:
    size = BY_NAME[work].size
    found = {"first_s": 1.0, "seconds": size / figure, "answer": 0, **told}
    return Run(number, contestant, work, size, found, 0.5, others)


def record(*runs: Run) -> Record:
    return Record("1 May 2026, 12:00 UTC", "abc", "2 cores", 3, 1, [], list(runs))


# -- children ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contestant", "work"),
    [(c, w) for c in PLAIN for w in WORKS if w.name in c.works and w.name != "kill"],
    ids=lambda value: value.name,
)
def test_those_that_need_no_environment_give_the_right_answer(contestant: Contestant, work: Work, cache: Path) -> None:
    found = race.run_once(contestant, work, SIZES[work.name], 0)

    assert found.failure == ""
    assert found.told["seconds"] > 0
    assert found.startup_s is not None
    assert found.startup_s > 0
    assert work.name != "latency" or 0 < found.told["p50_ms"] <= found.told["p99_ms"]


def test_a_killed_worker_of_ours_loses_nothing(cache: Path) -> None:
    ours = next(c for c in PLAIN if c.tool is OURS and "kill" in c.works)

    found = race.run_once(ours, BY_NAME["kill"], SIZES["kill"], 0)

    assert found.failure == ""
    assert found.told["flows_again_s"] > 0
    assert found.told["lost"] == 0


def test_the_first_fifth_of_the_items_has_no_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tasks.VARIABLE, tasks.Task("latency", 100, 1, tmp_path, tmp_path).dumps())
    tasks.current.cache_clear()
    late = tasks.Latencies()

    for number in range(100):
        late.take((number, 0.0 if number < 20 else time.time() - 1))
    late.close()
    tasks.current.cache_clear()

    assert late.count == 100
    p50_ms, p99_ms = percentiles_ms(tmp_path)
    assert 1000 <= p50_ms <= p99_ms < 1e6


def test_a_wrong_answer_gives_no_figure(cache: Path) -> None:
    wrong = replace(BY_NAME["identity"], expected=lambda size: -1)

    found = race.run_once(CONTESTANTS[0], wrong, 10, 0)

    assert found.failure == "answered 45, expected -1"
    assert found.rate == 0


def test_a_contestant_that_breaks_down_is_told_with_its_last_words(cache: Path) -> None:
    broken = Contestant("broken", Tool("broken", "nobody"), {"identity": 0})

    found = race.run_once(broken, BY_NAME["identity"], 10, 0)

    assert "No module named 'benchmarks.peers.nobody'" in found.failure


def test_a_tool_whose_program_is_missing_is_named() -> None:
    with pytest.raises(environments.Missing, match="odd needs no-such-program"):
        environments.interpreter(Tool("odd", "odd", programs=("no-such-program",)))


def test_what_a_run_leaves_behind_is_ended(tmp_path: Path) -> None:
    leave = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1).pid)"
    keeper = f"{leave}; import os; os._exit(0)"

    with watched() as seen:
        pid = int(subprocess.run([sys.executable, "-c", keeper], capture_output=True, check=True).stdout)

    assert seen.wall_s > 0
    if sys.platform == "linux":
        assert not Path(f"/proc/{pid}").exists()
        assert seen.others is not None


# -- rounds and repeats --------------------------------------------------------------------------


def test_all_contestants_of_a_work_run_before_the_next_work_and_the_next_round() -> None:
    works = [BY_NAME["identity"], BY_NAME["latency"]]
    contestants = [
        Contestant("one", LOOP, {"identity": 0, "latency": 0}),
        Contestant("two", POOL, {"identity": 7}),
    ]

    held = list(race.hold(contestants, works, 2, lambda c, w, size, n: run(c.name, w.name, 1.0, number=n)))

    assert [(r.round, r.work, r.contestant) for r in held] == [
        (n, *which) for n in (0, 1) for which in (("identity", "one"), ("identity", "two"), ("latency", "one"))
    ]


def test_a_tool_that_takes_long_to_start_takes_part_in_fewer_rounds() -> None:
    contestants = [
        Contestant("quick", LOOP, {"identity": 0}),
        Contestant("slow", Tool("slow", "slow", rounds=1), {"identity": 0}),
    ]

    held = list(race.hold(contestants, [BY_NAME["identity"]], 2, lambda c, w, size, n: run(c.name, w.name, 1.0)))

    assert [r.contestant for r in held] == ["quick", "slow", "quick"]


def test_after_the_limit_no_other_run_is_started() -> None:
    one = Contestant("one", LOOP, {"identity": 0})

    assert list(race.hold([one], [BY_NAME["identity"]], 2, lambda *_: pytest.fail("started"), limit_s=-1)) == []


@pytest.mark.parametrize(
    ("others", "repeats", "attempts", "kept"),
    [
        ([0.1], 2, 1, 0.1),
        ([0.9, 0.2], 2, 2, 0.2),
        ([0.9, 0.5, 0.7], 2, 3, 0.5),
        ([0.9], 0, 1, 0.9),
    ],
)
def test_a_run_beside_busy_neighbours_is_repeated_and_the_quietest_counts(
    others: list[float], repeats: int, attempts: int, kept: float
) -> None:
    runs: Iterator[Run] = iter([run("loop", "identity", 1.0, busy) for busy in others])

    found = race.quietest(lambda: next(runs), lambda: repeats)

    assert (found.attempts, found.others) == (attempts, kept)
    assert next(runs, None) is None


def test_a_failure_is_not_repeated_and_never_hides_a_good_run() -> None:
    failed = replace(run("loop", "identity", 1.0, 0.1), failure="broke")
    runs = iter([run("loop", "identity", 1.0, 0.9), failed])

    assert race.quietest(lambda: next(runs), lambda: 2).failure == ""


# -- the page ------------------------------------------------------------------------------------


def medley() -> Record:
    """Three rounds of identity, where the loop is ahead by 4, 2 and 2; and one of the two others."""
    return record(
        *(run("plain loop", "identity", rate, number=n) for n, rate in enumerate((8e6, 4e6, 2e6))),
        *(run("ours robust", "identity", rate, others=0.1, number=n) for n, rate in enumerate((2e6, 2e6, 1e6))),
        run("ours robust", "latency", 1.0, p50_ms=0.5, p99_ms=3.0),
        run("plain loop", "latency", 1.0, p50_ms=0.6, p99_ms=1.5),
        run("ours robust", "kill", 1.0, flows_again_s=0.03, lost=0, doubled=0),
        run("Pool, 1", "kill", 1.0, flows_again_s=None, lost=999, doubled=0),
    )


def test_where_others_are_ahead_comes_first_and_is_computed_within_rounds() -> None:
    text = page.tables(medley())

    lost, won = text.partition("### Where we are ahead")[::2]
    assert "ours robust 2 M items/s; ahead: plain loop 4 M items/s (2.00 ×)" in lost
    assert "ours robust 3.0 ms; ahead: plain loop 1.5 ms" in lost
    assert "ours robust 0.50 / 3.00 ms; next: plain loop 0.60 / 1.50 ms (0.83 ×)" in won
    assert "ours robust 30 ms; next: Pool, 1 never, 999 lost (0.00 ×)" in won


def test_of_two_rounds_ten_times_as_good_and_a_tenth_is_level() -> None:
    text = page.tables(
        record(
            *(run("ours robust", "kill", 1.0, number=n, flows_again_s=0.03, lost=0, doubled=0) for n in (0, 1)),
            run("Ray, 1", "kill", 1.0, number=0, flows_again_s=0.003, lost=0, doubled=0),
            run("Ray, 1", "kill", 1.0, number=1, flows_again_s=0.3, lost=0, doubled=0),
        )
    )

    assert "ours robust 30 ms; next: Ray, 1 152 ms (level)" in text.partition("### Where we are ahead")[2]


def test_who_loses_items_is_not_ahead_however_quick() -> None:
    text = page.tables(
        record(
            run("ours robust", "kill", 1.0, flows_again_s=0.03, lost=0, doubled=0),
            run("Pool, 1", "kill", 1.0, flows_again_s=0.002, lost=999, doubled=0),
            run("Bytewax, 1", "kill", 1.0, flows_again_s=0.06, lost=0, doubled=0),
        )
    )

    lost, won = text.partition("### Where we are ahead")[::2]
    assert "ahead:" not in lost
    assert "ours robust 30 ms; next: Bytewax, 1 60 ms" in won
    assert "2, 999 lost" in text


def test_each_figure_has_its_spread_its_runs_and_what_others_took() -> None:
    lines = page.tables(medley()).splitlines()

    assert "| plain loop | 4,000,000 | 2,000,000 | 8,000,000 | 3 | 1,000,000 | 0.50 | 0.00 |" in lines
    assert "| ours robust | 2,000,000 | 1,000,000 | 2,000,000 | 3 | 1,000,000 | 0.50 | 0.10 |" in lines
    assert "| ours robust | **2 M** | **0.50 / 3.00** | **30** |" in lines


def test_what_a_second_worker_brings_is_told() -> None:
    one = [run("ours robust", "cpu", rate, number=n) for n, rate in enumerate((5e3, 4e3, 4e3))]
    two = [run("ours robust * 2", "cpu", rate, number=n) for n, rate in enumerate((9.5e3, 8e3, 7.2e3))]
    workers = [run("ours robust workers=2", "cpu", rate, number=n) for n, rate in enumerate((1e4, 8e3, 8e3))]
    loops = [run(name, "cpu", rate) for name, rate in (("plain loop", 5e3), ("plain loop, 2", 9e3))]

    lines = page.tables(record(*loops, *one, *two, *workers)).splitlines()

    scaling = lines[lines.index("**Two workers against one** (cpu)") :]
    assert scaling[4:7] == [
        "| plain loop, 2 | 1.80 |",
        "| ours robust * 2 | 1.90 |",
        "| ours robust workers=2 | 2.00 |",
    ]


def test_a_failure_stands_in_the_table_and_is_explained() -> None:
    failed = replace(run("Ray, 1", "identity", 1.0), failure="exit code 1:\nsomething\nValueError: no")

    text = page.tables(record(run("plain loop", "identity", 1e6), failed))

    assert "| Ray, 1 | failed |" in text
    assert "- Ray, 1, identity: ValueError: no" in text


def test_the_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    target = tmp_path / "performance.md"
    target.write_text(f"above\n{page.BEGIN}\nold\n{page.END}\nbelow\n")

    page.write(medley(), target)
    page.write(medley(), target)

    text = target.read_text()
    assert text.startswith(f"above\n{page.BEGIN}\n")
    assert text.endswith(f"\n{page.END}\nbelow\n")
    assert "old" not in text
    assert text.count("### Medians") == 1
    assert (tmp_path / page.CHART).is_file()


def test_a_page_without_a_place_for_the_result_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "performance.md"
    target.write_text("nothing")

    with pytest.raises(ValueError, match="has no place for the result"):
        page.write(medley(), target)
    assert target.read_text() == "nothing"


def test_the_chart_has_a_line_for_each_figure() -> None:
    drawn = ET.fromstring(chart.draw(medley()))

    texts = [found.text for found in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("ours robust") == 3
    assert {"plain loop", "Pool, 1", "4 M", "2 M", "0.50 / 3.00", "never, 999 lost"} <= set(texts)
    circles = [float(found.attrib["cx"]) for found in drawn.iter("{http://www.w3.org/2000/svg}circle")]
    assert all(chart.LEFT <= x <= chart.RIGHT for x in circles)


def test_the_better_stands_further_right_for_rates() -> None:
    drawn = ET.fromstring(chart.draw(record(run("plain loop", "cpu", 5e3), run("Pool, 2", "cpu", 9e3))))

    first, second = [float(found.attrib["cx"]) for found in drawn.iter("{http://www.w3.org/2000/svg}circle")]
    assert first > second


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = medley()

    saved.save(tmp_path / "record.json")

    assert Record.load(tmp_path / "record.json") == saved


def test_the_command_runs_what_was_chosen(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--peers", "loop,pool", "--works", "cpu", "--quick"])

    told = capsys.readouterr()
    assert code == 0
    assert "| plain loop | " in told.out
    assert "| Pool, 2 | " in told.out
    assert "1 cpu: Pool, 1: " in told.err
    assert Record.load(cache / "record.json").rounds == 1


def test_the_command_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--peers", "storm"])

    assert "unknown peer 'storm'; there are loop, pool," in capsys.readouterr().err


def test_every_name_is_unique_and_every_work_is_known() -> None:
    assert len({c.name for c in CONTESTANTS}) == len(CONTESTANTS)
    assert {work for c in CONTESTANTS for work in c.works} <= set(BY_NAME)
    assert any(c.options == ROBUST for c in CONTESTANTS)
