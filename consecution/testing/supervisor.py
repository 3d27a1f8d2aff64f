"""A simulated supervisor around the core's `Recovery` and `Ending`: it hears of everything late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consecution.protocol.recovery import Order, OrderReplay, StartWorker, WireWorkers
from consecution.protocol.values import TaskIndex, WorkerIndex
from consecution.runtime import control
from consecution.testing.process import Crew, Process, SourceBeat
from consecution.testing.scene import Scene
from consecution.testing.violation import Violation


class Supervisor:
    """Starts, wires and restarts the processes of one life of the system, and ends it.

    It hears words, mourns deaths and starts processes, in random order; but for one process its words
    come in order, and before its death.
    """

    def __init__(self, scene: Scene, start: Callable[[WorkerIndex], Crew]) -> None:
        self.crews: dict[WorkerIndex, Crew] = {}
        self.processes: dict[TaskIndex, Process] = {}
        self.stop_asked = False
        self._scene = scene
        self._start = start
        self._dead: list[Crew] = []
        self._due: list[WorkerIndex] = []
        self._restarts = 0
        self._beats = dict.fromkeys(scene.world.sources, SourceBeat(False, False))
        self._stop_told = False
        self._to_end: set[TaskIndex] = set()
        self._source_homes = sorted({scene.home_of[task] for task in scene.world.sources})
        self._recovery = scene.parts.recovery(WorkerIndex(at) for at in range(len(scene.schedule.workers)))
        self._ending = scene.parts.ending(scene.world.end_stages)
        self._drain = scene.parts.ending(scene.world.drain_stages)

    def begin(self) -> None:
        self._carry_out(self._recovery.begin())

    @property
    def finished(self) -> bool:
        """The stream has ended, and every node that wanted an end has had it."""
        return self._ending.finished

    @property
    def drained(self) -> bool:
        """Stopped as asked, with nothing open."""
        return self._drain.finished

    def died(self, crew: Crew) -> None:
        """The system knows at once; the supervisor hears of it some time later."""
        self._dead.append(crew)

    def has_work(self) -> bool:
        if self._dead or self._due:
            return True
        for process in self.processes.values():  # noqa: SIM110  (asked at every step: twice as fast)
            if process.words:
                return True
        return False

    def act(self) -> None:
        """Do one thing; or one after another, until there is nothing to do."""
        busy = self._scene.rng.random() < 0.5
        self._act_once()
        while busy and self.has_work():
            self._act_once()
        self._look()

    def _act_once(self) -> None:
        choices: list[tuple[Callable[[Any], None], Any]] = [
            (self._hear, process) for process in self.processes.values() if process.words
        ]
        choices += [(self._mourn, crew) for crew in self._dead]
        choices += [(self._start_worker, worker) for worker in self._due]
        act, on = choices[int(self._scene.rng.random() * len(choices))]
        act(on)

    # -- what it hears ---------------------------------------------------------------------------

    def _hear(self, process: Process) -> None:
        word = process.words.popleft()
        self._scene.trace("supervisor hears {}", word)
        if isinstance(word, control.Hello):
            self._carry_out(self._recovery.started(word.worker, word.endpoint))
            if word.worker in self._source_homes and self._stop_told:
                process.crew.orders.append(control.StopReading())
        elif isinstance(word, control.Switched):
            self._carry_out(self._recovery.switched(word.worker, word.version))
        elif isinstance(word, control.Ended):
            self._to_end.update((self._drain if self._drain.started else self._ending).task_ended(process.task))
        elif isinstance(word, control.StopAsked):
            self.stop_asked = True
        elif isinstance(word, SourceBeat):
            self._beats[process.task] = word

    def _mourn(self, crew: Crew) -> None:
        """Hear the last words, then see to a new incarnation."""
        for process in crew.members.values():
            while process.words:
                self._hear(process)
        self._dead.remove(crew)
        self._scene.trace("supervisor mourns {}", crew.endpoint)
        del self.crews[crew.worker]
        for task in crew.members:
            del self.processes[task]
            if not self._scene.schedule.robust:
                self._lose(task)
            elif task in self._ending.due and task not in self._scene.world.durable_tasks:
                self._to_end.add(task)
        self._carry_out(self._recovery.died(crew.worker))

    def _lose(self, task: TaskIndex) -> None:
        """Without a journal nobody knows what a task that died in its end had done: it is not run again."""
        if task in self._ending.due:
            self._scene.ended.add(task)
            self._to_end.discard(task)
            self._to_end.update(self._ending.task_ended(task))

    def _look(self) -> None:
        """What has to wait until all tasks live and are wired."""
        if not self._recovery.settled:
            return
        if self.stop_asked and not self._ending.started:
            self._stop()
        elif all(beat.finished for beat in self._beats.values()):
            self._to_end.update(self._ending.source_finished())
        self._tell_ends()

    def _tell_ends(self) -> None:
        order = control.Drain if self._drain.started else control.RunEnd
        for task in sorted(self._to_end):
            self.processes[task].crew.orders.append(order(task))
        self._to_end.clear()

    def _stop(self) -> None:
        if not self._stop_told:
            self._stop_told = True
            for worker in self._source_homes:
                self._tell(worker, control.StopReading())
        if all(beat.drained for beat in self._beats.values()):
            self._to_end.update(self._drain.source_finished())

    # -- what it orders --------------------------------------------------------------------------

    def _start_worker(self, worker: WorkerIndex) -> None:
        self._due.remove(worker)
        if worker in self.crews:
            raise Violation(f"worker {worker} was started while it lives")
        crew = self.crews[worker] = self._start(worker)
        self.processes.update(crew.members)
        self._scene.trace("supervisor starts {}", crew.endpoint)

    def _carry_out(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, StartWorker):
                self._due.append(order.worker)
            elif isinstance(order, WireWorkers):
                for worker in order.workers:
                    self._tell(worker, control.Wire(order.version, order.endpoints))
                self._scene.passed("supervisor.wired")
            elif isinstance(order, OrderReplay):
                if self._scene.world.durable_tasks:
                    self._to_end.update((self._drain if self._drain.started else self._ending).told)
                self._tell_ends()
                for worker in list(self.crews):
                    self._tell(worker, control.Replay(after_death=self._restarts > 0))
                self._restarts = 1
                self._scene.passed("supervisor.replayed")

    def _tell(self, worker: WorkerIndex, order: Any) -> None:
        crew = self.crews.get(worker)
        if crew is not None:
            crew.orders.append(order)
