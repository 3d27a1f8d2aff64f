"""What a run tells of each of its tasks while it runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from consecution import Pipeline, Producer, TextLines
from consecution.report import TaskCounts
from tests.engines.misbehaving import wait_for


def tasks_of(running: Any) -> dict[str, TaskCounts]:
    return {task.task: task for task in running.status().tasks}


def text(item: Any) -> str:
    return str(item)


@pytest.mark.parametrize("mode", ["inline", "thread", "process"])
def test_every_task_counts_frames_and_the_time_they_took(mode: Any, tmp_path: Path) -> None:
    pipeline = Pipeline(Producer(range(1000)) | text | TextLines("out", path=tmp_path / "out"))
    running = pipeline.start(mode=mode, state_dir=tmp_path / "state", sync="process", batch_size=50)

    running.wait()

    found = tasks_of(running)
    assert [(t.task, t.node) for t in found.values()] == [
        ("producer.0", "producer"),
        ("text.0", "text"),
        ("out.0", "out"),
    ]
    assert [t.items_in for t in found.values()] == [1000, 1000, 1000]
    assert all(t.frames >= 20 and t.busy_s > 0 for t in found.values())
    assert found["producer.0"].commit_s > 0
    assert found["out.0"].commit_s > 0
    assert found["producer.0"].waited_s > 0
    assert (found["text.0"].waited_s > 0) == (mode != "inline")
    assert all(t.waiting == 0 for t in found.values())


def test_a_frame_in_hand_counts_as_busy_while_it_is_there() -> None:
    gate = threading.Event()

    def hold(item: Any) -> Any:
        gate.wait(60)
        return item

    running = Pipeline(Producer(range(3)) | hold).start(mode="thread", sync="process")

    wait_for(lambda: tasks_of(running)["hold.0"].busy_s > 0.05)
    assert tasks_of(running)["hold.0"].frames == 0
    gate.set()
    running.wait()
    assert tasks_of(running)["hold.0"].frames > 0
