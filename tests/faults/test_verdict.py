"""What the judge of a run takes for its own."""

from __future__ import annotations

from pathlib import Path

import multiprocess
import pytest

from tests.faults import verdict, victim
from tests.faults.job import Job


def test_a_semaphore_that_is_left_is_found_and_one_of_a_neighbour_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"faults-{tmp_path.name}"
    job = Job(1, "travel", 10, "list", "power", 30.0, str(tmp_path / mark))
    monkeypatch.setattr(multiprocess.process.current_process(), "_config", {"semprefix": "/mp"})
    context = multiprocess.get_context("spawn")
    neighbour = context.Lock()
    victim.name_semaphores(job)
    ours = context.Lock()

    (found,) = verdict.of_shared_memory(mark, within_s=0.0)

    assert found == f"left in shared memory: sem.{ours._semlock.name.lstrip('/')}"
    assert neighbour._semlock.name.lstrip("/") not in found
    del ours
    assert verdict.of_shared_memory(mark, within_s=0.0) == []
