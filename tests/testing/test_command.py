"""``python -m consecution.testing``."""

from __future__ import annotations

import pytest

from consecution.protocol.origin import Origin
from consecution.protocol.values import Ack
from consecution.testing import __main__ as command


def test_good_schedules_exit_0_and_print_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--schedules", "5", "--seed", "3"])

    assert code == 0
    assert capsys.readouterr().out.startswith("5 schedules, ")


def test_a_failing_seed_is_printed_with_the_way_to_repeat_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def acked(self: Origin, ack: Ack, now_s: float, sender: int = -1) -> None:
        """Nobody listens."""

    monkeypatch.setattr(Origin, "acked", acked)

    code = command.main(["--schedules", "5", "--seed", "3"])

    out = capsys.readouterr().out
    assert code == 1
    assert "stuck: nothing moves" in out
    assert "repeat: python -m consecution.testing --trace " in out


def test_a_trace_prints_the_events_of_one_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--trace", "3"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert any("gets Frame(" in line for line in lines)
    assert lines[-1] == "every promise was kept"


def test_progress_is_shown_while_it_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PROGRESS_EVERY_S", 0.0)

    command.main(["--schedules", "2"])

    assert "2 of 2, " in capsys.readouterr().err
