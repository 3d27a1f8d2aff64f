from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.examples import programs

tour = programs.load("tour")

LONG = [
    *("tyger", "tyger", "burning", "bright", "forests", "night", "immortal"),
    *("could", "frame", "fearful", "symmetry", "william", "blake"),
]
SHORT = ["in the of", "the what hand", "or eye thy"]
EXPECTED = sorted([*SHORT, *(word.upper() + "!" for word in LONG), *(word[::-1] for word in LONG)])


def numbered(output: str) -> list[tuple[str, int, str]]:
    """(letter, number, text) of every line that was printed."""
    lines = re.findall(r"^(?:\[print\.0 \d+\] )?([a-z])(\d+)  (.+)$", output, re.MULTILINE)
    return [(letter, int(number), text) for letter, number, text in lines]


@pytest.mark.parametrize("mode", ["inline", "process"])
def test_every_word_went_its_way_and_each_letter_was_numbered_by_one_replica(tmp_path: Path, mode: str) -> None:
    done = programs.call(programs.script("tour", "--mode", mode), tmp_path)

    assert done.returncode == 0, done.stderr
    printed = numbered(done.stdout + done.stderr)
    assert sorted(text for _, _, text in printed) == EXPECTED
    numbers = defaultdict(list)
    for letter, number, text in printed:
        assert text.lower().startswith(letter)
        numbers[letter].append(number)
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())


def test_the_program_prints_its_picture_first(tmp_path: Path) -> None:
    done = programs.call(programs.script("tour", "--mode", "inline"), tmp_path)

    assert "is_word.length | [long, short]" in done.stdout
    assert re.search("number +2 .* number.0, number.1", done.stdout)
    assert len(re.findall("-> number +by key", done.stdout)) == 3


@pytest.mark.parametrize("robustness", ["track", "robust"])
def test_the_command_runs_it(tmp_path: Path, robustness: str) -> None:
    path = str(programs.FOLDER / "tour.py")

    done = programs.call(programs.command("run", path, "--robustness", robustness, "--quiet"), tmp_path)

    assert done.returncode == 0, done.stderr
    assert sorted(text for _, _, text in numbered(done.stdout + done.stderr)) == EXPECTED
