from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consecution.sinks.rotation import FileNames, RotationLimits


@pytest.mark.parametrize(
    ("pattern", "final", "working"),
    [
        ("out-{number:06}.txt", "out-000012.txt", "out-000012.txt.part"),
        ("{number}", "12", "12.part"),
        ("{{x}}-{number:04d}", "{x}-0012", "{x}-0012.part"),
        ("out.txt", "out.txt", "out.txt"),
        ("a{b}c.txt", "a{b}c.txt", "a{b}c.txt"),
    ],
)
def test_names_come_from_the_pattern(tmp_path: Path, pattern: str, final: str, working: str) -> None:
    names = FileNames(tmp_path / pattern, in_parts=False, sink="sink")

    assert names.final(12) == tmp_path / final
    assert names.working(12) == tmp_path / working


@pytest.mark.parametrize("pattern", ["o{{ut}}-{number:03}.x", "{number}", "{number:d}", "a.{number:04}"])
@given(numbers=st.sets(st.integers(1, 20_000), max_size=5), parts=st.integers(0, 1))
def test_the_next_number_is_above_all_that_are_there(
    tmp_path_factory: pytest.TempPathFactory, pattern: str, numbers: set[int], parts: int
) -> None:
    folder = tmp_path_factory.mktemp("names")
    names = FileNames(folder / pattern, in_parts=False, sink="sink")
    for number in numbers:
        (names.working if parts else names.final)(number).touch()
    (folder / "unlike").touch()

    assert names.next_free() == max(numbers, default=0) + 1


@pytest.mark.parametrize(
    ("limits", "size_bytes", "items", "reached"),
    [
        (RotationLimits(), 10**9, 10**9, False),
        (RotationLimits(size_bytes=10), 9, 100, False),
        (RotationLimits(size_bytes=10), 10, 1, True),
        (RotationLimits(items=3), 10**9, 2, False),
        (RotationLimits(items=3), 0, 3, True),
        (RotationLimits(size_bytes=10, items=3), 10, 1, True),
    ],
)
def test_a_file_is_complete_when_one_limit_is_reached(
    limits: RotationLimits, size_bytes: int, items: int, reached: bool
) -> None:
    assert limits.reached(size_bytes, items) is reached
