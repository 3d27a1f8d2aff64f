"""Two revisions, interleaved."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.contest import Run, run_child

OTHER, THIS = Path("/other"), Path("/this")


def test_revisions_take_turns_and_the_first_changes_from_round_to_round() -> None:
    calls = []

    def fake(root: Path, contestant: str) -> Run:
        calls.append((root, contestant))
        return Run(contestant, 100, 1.0, 1.0, 0.0)

    list(compare.interleave(["a", "b"], 2, OTHER, THIS, fake))

    assert calls == [
        *((OTHER, "a"), (THIS, "a"), (OTHER, "b"), (THIS, "b")),
        *((THIS, "a"), (OTHER, "a"), (THIS, "b"), (OTHER, "b")),
    ]


def test_ratios_are_taken_within_rounds_and_have_a_spread() -> None:
    seconds = {OTHER: iter((2.0, 40.0, 3.0)), THIS: iter((1.0, 10.0, 3.0))}

    def fake(root: Path, contestant: str) -> Run:
        return Run(contestant, 120, next(seconds[root]), 1.0, 0.5 if root == OTHER else 0.0)

    pairs = list(compare.interleave(["a"], 3, OTHER, THIS, fake))

    assert [pair.ratio for pair in pairs] == [2.0, 4.0, 1.0]
    row = compare.table("a question", "items", pairs).splitlines()[-1]
    assert row.split()[:6] == ["a", "40", "40", "2.00", "1.00", "4.00"]
    assert row.endswith("(3 of 6 runs beside busy neighbours)")


def test_an_unknown_revision_is_named() -> None:
    with pytest.raises(SystemExit, match="no-such-revision"), compare.checked_out("no-such-revision"):
        pass


def test_an_unknown_question_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["HEAD", "weather"])

    assert "unknown question 'weather'; there are identity" in capsys.readouterr().err


def test_two_checkouts_are_measured_side_by_side(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the commit before, or itself where that is all there is."""
    monkeypatch.setattr(compare, "contestants_of", lambda root, question: ["plain loop"])

    assert compare.main(["HEAD", "cpu", "--quick"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("CPU-bound")
    assert lines[2].split()[:2] == ["plain", "loop"]


def test_a_child_runs_the_package_of_its_own_checkout(tmp_path: Path) -> None:
    (tmp_path / "consecution.py").write_text("found = 42\n")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    told = 'import consecution; print(\'{"seconds": 1.0, "answer": %d}\' % consecution.found)'
    (tmp_path / "benchmarks" / "child.py").write_text(told)

    found = run_child("identity", "anybody", 10, 42, root=tmp_path)

    assert found.items_per_s == 10
