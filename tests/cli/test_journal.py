from __future__ import annotations

import json
from pathlib import Path

import pytest

from consecution import Map, Pipeline, Reduce
from consecution.cli import main


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """The state directory of a run that came to its end."""
    path = tmp_path / "state"
    Pipeline(Map(str, name="text")).run(range(5), mode="inline", state_dir=path)
    return path


def test_a_sound_directory_exits_0_and_is_summed_up(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["journal", "check", str(state_dir)]) == 0

    text = capsys.readouterr().out
    assert text.startswith("state directory: finished")
    assert "5 items emitted" in text
    assert text.endswith("every record is sound\n")


def test_the_findings_are_printed_as_json(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["journal", "check", str(state_dir), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert [origin["emitted"] for origin in found["origins"]] == [5]


def test_what_durable_tasks_hold_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "state"
    count = Reduce(lambda item: item % 3, 0, lambda n, _: n + 1, "count")
    Pipeline(Map(int, "in") | count | Map(str, "text")).run(range(10), mode="inline", state_dir=path)

    assert main(["journal", "check", str(path)]) == 0

    text = capsys.readouterr().out
    assert "count.0: 3 items emitted in 1 batches; open batches 0" in text
    assert (
        "0 states in its table and 1 records in its log, 0 frames staged; last batches applied: 0 of source.0" in text
    )


def test_damage_exits_1_and_is_named(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state_dir / "manifest.json").write_text("{")

    assert main(["journal", "check", str(state_dir)]) == 1

    assert "DAMAGED: " in capsys.readouterr().out


def test_a_folder_that_is_no_state_directory_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["journal", "check", str(tmp_path)]) == 2

    assert "is not a state directory" in capsys.readouterr().err
