from __future__ import annotations

import sys
from typing import Any

import pytest

from benchmarks import scale

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_runs_are_measured_and_their_answers_checked(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["scale", "items", "--most", "10000"])

    assert scale.main() == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["items", "time", "per", "item", "memory", "disk"]
    assert [row.split()[:2] for row in rows] == [["identity", "10,000"]]


def test_a_wrong_answer_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale.Case, "expected", 7)

    with pytest.raises(RuntimeError, match="the answer is 45, and should be 7"):
        scale.measure(scale.Case("nodes", 3, 10, "2"))
