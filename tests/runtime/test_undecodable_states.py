"""States whose classes are not there any more: the run ends and says so; no item is at fault, and nothing is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from consecution import Failure, Pipeline
from consecution.cli.target import load_target
from consecution.errors import UndecodableStateError
from consecution.runtime import state_table
from consecution.runtime.journal_check import check_state_dir
from tests.conftest import WriteModule

CODE = """
from dataclasses import dataclass
from consecution import KeyedNode, Pipeline, Producer

@dataclass
class {name}:
    count: int = 0

class Counting(KeyedNode):
    def initial_state(self):
        return {name}()

    def key(self, item):
        return item % 3

    def process(self, item):
        self.state.count += 1

pipeline = Pipeline(Producer("manual", name="numbers") | Counting("counting"))
"""


def run(pipeline: Pipeline, state_dir: Path, mode: str) -> tuple[Failure, ...]:
    running = pipeline.start(mode=mode, state_dir=state_dir, sync="process", retries=0)
    try:
        for number in range(9):
            running.push(number).wait(30.0)
    finally:
        report = running.stop()
    return report.failures


@pytest.mark.parametrize("mode", ["inline", "thread"])
@pytest.mark.parametrize("place", ["log", "table"])
def test_a_run_over_them_is_refused_and_the_old_code_goes_on(
    tmp_path: Path, write_module: WriteModule, monkeypatch: pytest.MonkeyPatch, place: str, mode: str
) -> None:
    if place == "table":
        monkeypatch.setattr(state_table, "LOG_LIMIT_BYTES", 0)
    old = load_target(str(write_module("old_code", CODE.format(name="Sum"))))
    run(old, tmp_path / "state", mode)
    kept = write_module("old_code", CODE.format(name="Total"))
    before = sys.modules.pop("old_code")
    new = load_target(str(kept))

    with pytest.raises(
        UndecodableStateError, match=r"counting.* cannot be decoded \(AttributeError: .*nothing was lost"
    ):
        run(new, tmp_path / "state", mode)

    assert check_state_dir(tmp_path / "state").problems == ()
    sys.modules["old_code"] = before
    assert run(old, tmp_path / "state", mode) == ()
