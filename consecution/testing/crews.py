"""Starts the processes of a simulated worker: each task in the shell of its kind."""

from __future__ import annotations

from consecution.protocol.values import TaskIndex, WorkerIndex
from consecution.testing.process import Crew, DurableProcess, Process, SourceProcess
from consecution.testing.scene import Scene
from consecution.testing.slow_tasks import KIND_OF_PACE


def start_crew(scene: Scene, worker: WorkerIndex, incarnation: int) -> Crew:
    """A new incarnation of a worker, with all its tasks."""
    crew = Crew(worker, incarnation)
    for task in scene.schedule.workers[worker]:
        _kind_of(scene, task)(scene, task, crew)
    return crew


def _kind_of(scene: Scene, task: TaskIndex) -> type[Process]:
    if task in scene.world.sources:
        return SourceProcess
    if task in scene.world.durable_tasks:
        return DurableProcess
    return KIND_OF_PACE[scene.world.node_of[task].pace]
