from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.examples import programs

weblog = programs.load("weblog")

ROWS = "SELECT minute, hits, errors, bytes FROM minutes ORDER BY minute"


def following(folder: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    return programs.following("weblog", "--log", str(folder / "logs" / "access.log"), "--out", str(folder / "out"))


def counted(lines: list[str]) -> list[Any]:
    """What a plain loop says."""
    hits: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    size_bytes: Counter[str] = Counter()
    for hit in map(weblog.parse, lines):
        hits[hit.minute] += 1
        errors[hit.minute] += hit.status >= 500
        size_bytes[hit.minute] += hit.size_bytes
    return [(minute, hits[minute], errors[minute], size_bytes[minute]) for minute in sorted(hits)]


def rows_in(folder: Path) -> list[Any]:
    with contextlib.suppress(Exception):
        return programs.query(folder / "out" / "weblog.db", ROWS)
    return []


def wait_for(folder: Path, hits: int, process: subprocess.Popen[str]) -> None:
    programs.wait_for(lambda: sum(row[1] for row in rows_in(folder)) >= hits, process)


def test_a_line_is_parsed_and_another_is_refused() -> None:
    line = '::1 - ann [01/Feb/2026:23:59:59 -0100] "GET / HTTP/1.1" 503 - "-" "curl/8"'

    assert weblog.parse(line) == ("2026-02-02 00:59", 503, 0)
    with pytest.raises(ValueError, match="no line of an access log"):
        weblog.parse("and then it said nothing more")


def test_minutes_are_right_to_the_line_over_rotations_kills_and_a_stop(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "access.log"
    weblog.write_log(log, 2000)
    with following(tmp_path) as process:
        wait_for(tmp_path, 1000, process)
        process.kill()
    weblog.write_log(log, 6000)  # Rotates it twice while nobody looks.
    with log.open("a") as file:
        file.write("this is no hit\n")
    with following(tmp_path) as process:
        wait_for(tmp_path, 2500, process)
        weblog.write_log(log, 3000)
        wait_for(tmp_path, 11_000, process)
        told = programs.stop(process)

    logs = sorted((tmp_path / "logs").iterdir())
    lines = [line for path in logs for line in path.read_text().splitlines() if "no hit" not in line]
    assert (len(logs), len(lines)) == (4, 11_000)
    assert rows_in(tmp_path) == counted(lines)
    assert "failed 1 " in told
