from __future__ import annotations

import sys

import pytest

from benchmarks import idle


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is read from /proc")
def test_what_waits_for_items_takes_some_processor_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "REST_S", 0.1)

    assert idle.main(["--nodes", "1", "--seconds", "2.5"]) == 0

    *_, row = capsys.readouterr().out.splitlines()
    nodes, ours, theirs, both = (float(cell) for cell in row.strip("| ").split("|"))
    assert nodes == 1
    assert ours > 0
    assert theirs > 0
    assert both == pytest.approx(ours + theirs, abs=0.15)
