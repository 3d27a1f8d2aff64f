"""A worker: the tasks of one process (or, for a source that cannot be shipped, of one thread).

The loop takes messages in, lets the hosts work, and sends what they have to say: to a task of the same worker by
a queue, to all others by a socket. Beside it two small threads: one reads what the supervisor says (the end of
that pipe means the supervisor is dead, and so is the worker), one tells it that the tasks live and how far they are.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import math
import mmap
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import multiprocess.forkserver
import zmq

from consecution.errors import ConsecutionError, SourceError, WorldError, text_of, traceback_of
from consecution.kernel import end_with_parent
from consecution.nodes import Node
from consecution.plan import Plan
from consecution.protocol.origin import FailureEntry
from consecution.protocol.poison import Guard, Verdict
from consecution.protocol.step import shorten_repr
from consecution.protocol.values import Frame, Message, TaskIndex, WorkerIndex
from consecution.runtime import assembly, control, failpoints
from consecution.runtime.affinity import Affinity, transport_threads
from consecution.runtime.fork_server import leave_tracker
from consecution.runtime.memory import limit_memory
from consecution.runtime.offspring import Offspring, end_if_forked
from consecution.runtime.origin_host import OriginHost, SourceHost, process_codec
from consecution.runtime.replicas import share_nodes
from consecution.runtime.shipping import Shipment, read_parcel, unship
from consecution.runtime.slots import SlotNote, map_slot
from consecution.runtime.task_host import ANSWER_S
from consecution.sink import Sink
from consecution.source import Source
from consecution.telling import tell
from consecution.transport.salvage import salvage
from consecution.transport.socket_folder import remove_if_empty
from consecution.transport.sockets import Inbox, SocketOutbox

MESSAGES_PER_TURN = 16
"""For each task; a source, whose messages are small, takes more."""
SOURCE_MESSAGES_PER_TURN = 1000
DELIVER_S = 0.05
"""So long a worker's tasks work for each other before they commit, for other workers wait for what is told then."""
BEAT_EVERY_S = 1.0
"""What somebody waits for is told at once, and not with the next beat."""
QUICKEST_BEAT_S = 0.25
BEATS_IN_TIMEOUT = 8
"""It beats so often, if not more often than that, in the time after which a worker without progress is killed."""
ASK_EVERY_S = 0.005
"""How often a source without a descriptor is asked, while it has nothing."""
EXIT_FAILED = 70


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to know at its start, beside the shipment of its tasks.

    ``store_paths``: where the stores of those tasks lie that have one. ``verdicts`` are those of each node.
    """

    worker: WorkerIndex
    tasks: tuple[TaskIndex, ...]
    incarnation: int
    epoch: str
    store_paths: dict[TaskIndex, str]
    socket_folder: str
    failpoints: str
    environment: dict[str, str]
    verdicts: dict[str, tuple[Verdict, ...]] = field(default_factory=dict)
    memory_limit_bytes: int = 0
    core: int | None = None
    """Where its loop waits, if that is settled already."""


def run_worker(spec: WorkerSpec, pipe: Any, log: Any, parcel: Any, slot: Any = None) -> None:
    """The main function of a worker process."""
    _take_over_output(log)
    _take_over_environment(spec.environment)
    leave_tracker()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it_to_the_supervisor)
    _die_with_parent()
    failpoints.arm(spec.failpoints)
    home, offspring = os.getpid(), Offspring()
    worker: Worker | None = None
    try:
        limit_memory(spec.memory_limit_bytes)
        shipment = unship(read_parcel(parcel))
        worker = Worker(spec, pipe, shipment, offspring, slot=None if slot is None else map_slot(slot))
        worker.run()
    except BaseException as error:
        end_if_forked(home)
        _report(pipe, spec, worker, error)
        if worker is not None:
            worker.close_sockets()
        _leave(EXIT_FAILED, offspring)
    _leave(0, offspring)


def _leave(code: int, offspring: Offspring) -> None:
    """Exit without waiting for threads that user code has left behind, nor for its processes."""
    offspring.end()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _leave_it_to_the_supervisor(signum: int, frame: Any) -> None:
    """A signal to the whole group is the supervisor's to answer: it stops the sources first."""


def _take_over_output(log: Any) -> None:
    """Everything written from here on, native code's included, goes to the supervisor.

    Stacks do so by a descriptor of their own, whatever user code does to the standard ones.
    """
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    stacks = os.dup(log.fileno())
    log.close()
    faulthandler.enable(stacks, all_threads=True)
    faulthandler.register(signal.SIGUSR2, stacks, all_threads=True)


def _take_over_environment(environment: dict[str, str]) -> None:
    """The fork server has the variables of the time when it was started; a notebook may have set others since."""
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)


def _die_with_parent() -> None:
    """A net under the pipe, for workers whose user code holds the interpreter.

    The fork server ends with the supervisor once no worker holds its pipe; Linux then kills the workers, stopped
    ones too. Asked for while this one still holds the pipe: it could end before, unnoticed.
    """
    end_with_parent()
    server = multiprocess.forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


def _report(pipe: Any, spec: WorkerSpec, worker: Worker | None, error: BaseException) -> None:
    """Tell the supervisor which task this worker dies of, and in what it was."""
    task, doing = (spec.tasks[0], "start") if worker is None else (worker.at, worker.raised_in)
    tell = pipe.send if worker is None else worker._tell  # which no beat comes in between
    with contextlib.suppress(Exception):
        tell(control.Failed(task, doing, text_of(error), traceback_of(error), _pickled(error)))


def _pickled(error: BaseException) -> bytes | None:
    """One of our own errors, to be raised again by the supervisor; None for all others."""
    if not isinstance(error, ConsecutionError):
        return None
    try:
        blob = pickle.dumps(error)
        pickle.loads(blob)
    except Exception:
        return pickle.dumps(WorldError(text_of(error)))
    return blob


class _Over(NamedTuple):
    """Whether the stream is finished, and whether it was stopped and nothing is open."""

    finished: bool
    drained: bool


class _Outbox:
    """The way from the tasks of one worker to all tasks: what stays in the worker goes into a queue."""

    def __init__(self, mates: frozenset[TaskIndex], sockets: SocketOutbox) -> None:
        self.waiting: deque[tuple[TaskIndex, Message]] = deque()
        self._mates = mates
        self._sockets = sockets

    def send(self, target: TaskIndex, message: Message) -> None:
        if type(message) is Frame:
            message.sent_s = time.monotonic()
        if target in self._mates:
            self.waiting.append((target, message))
        else:
            self._sockets.send(target, message)


class Worker:
    """The loop of one worker. ``at`` and ``doing`` say whose user code runs just now, and which step of it.

    ``offspring`` is None where the worker is a thread, whose process is the user's.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        pipe: Any,
        shipment: Shipment,
        offspring: Offspring | None,
        *,
        slot: mmap.mmap | None = None,
    ) -> None:
        self.worker = spec.worker
        self.at = spec.tasks[0]
        self.doing = "start"
        self._spec = spec
        self._pipe = pipe
        self._home = os.getpid()
        self._offspring = offspring
        self._lock = threading.Lock()
        self._orders: deque[Any] = deque()
        self._waking = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._quit = False
        self._at_work_s = -math.inf
        """When the supervisor last told of work that takes long."""
        self._beat_now = threading.Event()
        self._beats_over = False
        self._warned_of_s: set[float] = set()
        self._ending: set[TaskIndex] = set()
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        ours = threading.get_native_id()  # no other thread's context is called so, the user's included
        self._context.set(zmq.THREAD_NAME_PREFIX, ours)
        self._inbox = Inbox(self._context, spec.socket_folder, f"{spec.worker}.{spec.incarnation}")
        self._plan = shipment.plan
        self._sockets = SocketOutbox(self._context, _homes(shipment.plan))
        self._outbox = _Outbox(frozenset(spec.tasks), self._sockets)
        self._poller = zmq.Poller()
        self._poller.register(self._inbox.socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._watched_fds: set[int] = set()
        self._slot = slot
        self._guards: dict[TaskIndex, Guard] = {}
        self._over: dict[TaskIndex, _Over] = {}
        self._told_over: dict[TaskIndex, _Over] = {}
        self._completed_at_death: dict[TaskIndex, int] = {}
        """For sources of which nothing has been completed since."""
        self._sources: dict[TaskIndex, SourceHost] = {}
        self._hosts: dict[TaskIndex, assembly.Host] = {}
        nodes = share_nodes(shipment.nodes, self._plan, spec.tasks)
        for task in spec.tasks:
            self._make_host(task, nodes.get(task), shipment.sources.get(task))
        # Of a worker that only reads they are let alone: its core has the thread of a generator, too.
        self._affinity = Affinity(partial(transport_threads, ours)) if self._hosts else Affinity()
        self._most_messages = MESSAGES_PER_TURN * len(self._hosts)
        self._most_messages += SOURCE_MESSAGES_PER_TURN * len(self._sources)

    def _make_host(self, task: TaskIndex, node: Node | None, source: Source | None) -> None:
        plan, spec = self._plan, self._spec
        self.at = task
        codecs = process_codec(robust=plan.options.robust)
        path = Path(spec.store_paths[task]) if task in spec.store_paths else None
        name = plan.task(task).node
        note = None if self._slot is None else SlotNote(self._slot, task)
        guard = self._guards[task] = Guard(note, spec.verdicts.get(name, ()), salvage)
        guard.beside = None if self._slot is None else SlotNote(self._slot, task, beside=True)
        if plan.node(name).is_source:
            assert source is not None
            self._sources[task] = assembly.make_source_host(
                plan,
                task,
                source,
                codecs,
                self._outbox,
                journal_path=path,
                epoch=spec.epoch,
                now=time.time,
                on_stop=self._ask_stop,
                guard=guard,
            )
            return
        assert node is not None
        self._hosts[task] = assembly.make_host(
            plan,
            task,
            node,
            codecs,
            self._outbox,
            path=path,
            epoch=spec.epoch,
            guard=guard,
            on_stop=self._ask_stop,
            wake=self._wake,
        )

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Say hello, begin, work until told to quit."""
        threading.Thread(target=self._listen, name="consecution-orders", daemon=True).start()
        threading.Thread(target=self._beat, name="consecution-beat", daemon=True).start()
        self._tell(control.Hello(self.worker, self._inbox.endpoint, os.getpid()))
        self._begin()
        if self._offspring is not None:
            gc.freeze()  # Code and inputs stay to the end: no collection has to go through them.
        self._tell(control.Began(self.worker))
        failpoints.passed("worker.begun")
        self._affinity.wait_on(self._spec.core)
        self.doing = "process"
        while not self._quit:
            self._turn()
        self._close()

    @property
    def raised_in(self) -> str:
        """Which step it was, once one has raised: a turn of a task may have run its timer."""
        host = self._hosts.get(self.at)
        return self.doing if host is None or self.doing != "process" else host.raised_in or self.doing

    def _begin(self) -> None:
        """Sources last: they must not read before all that they read for have begun."""
        for task, host in self._hosts.items():
            self.at, self.doing = task, "open" if isinstance(host.node, Sink) else "begin"
            host.begin()
            end_if_forked(self._home)
        for task, source in self._sources.items():
            self.at, self.doing = task, "begin"
            source.open()
        for origin in self._origin_hosts():
            origin.at_work = self._knows_of_work
            if self._plan.options.sync == "power":
                origin.affinity = self._affinity

    def _origin_hosts(self) -> list[OriginHost]:
        below = [host.origin_host for host in self._hosts.values() if host.origin_host is not None]
        return [*below, *(source.host for source in self._sources.values())]

    def _knows_of_work(self) -> bool:
        return time.monotonic() - self._at_work_s < 2 * self._plan.options.timeout_s

    def _turn(self) -> None:
        while self._orders:
            self._obey(self._orders.popleft())
        worked = self._take_in()
        # The commit of what has come from others, for they wait for its acknowledgement; not after a share of one's
        # own work. What tasks of this worker get from each other in `_deliver` is part of the next one.
        for task, host in self._hosts.items():
            worked = self._turn_task(task, host) or worked
        worked = self._deliver() or worked
        for task, source in self._sources.items():
            worked = self._turn_source(task, source) or worked
        worked = self._deliver() or worked
        if not worked and not self._orders and not self._quit and not self._outbox.waiting:
            self._wait()

    def _take_in(self) -> bool:
        """What has come from other workers."""
        worked = False
        until_s = time.monotonic() + ANSWER_S
        for target, message in self._inbox.take(self._most_messages):
            worked = True
            self._hand(target, message)
            if self._orders or time.monotonic() > until_s:
                break  # a death must not wait for all that is in the inbox, nor must the answers
        return worked

    def _deliver(self) -> bool:
        """What tasks of this worker have for each other, until nothing is left of it or `DELIVER_S` are over."""
        waiting = self._outbox.waiting
        worked = bool(waiting)
        until_s = time.monotonic() + DELIVER_S
        while waiting and not self._orders and time.monotonic() < until_s:
            self._hand(*waiting.popleft())
        return worked

    def _hand(self, target: TaskIndex, message: Message) -> None:
        """Hand a message over, and before anything else what follows from it at once.

        So a batch is at its end, or on its way to other workers, before another is begun, and what a step has made is
        still in the processor's cache at the next. A task whose turns send, too, must not overtake itself: what it
        sends waits behind all others.
        """
        waiting = self._outbox.waiting
        following = 0
        while True:
            others = len(waiting)
            self._give(target, message)
            sent = len(waiting) - others
            if sent and self._hosts[target].sends_at_once:
                following += sent
                waiting.rotate(sent)
            if not following:
                return
            following -= 1
            target, message = waiting.popleft()

    def _give(self, target: TaskIndex, message: Message) -> None:
        self.at = target
        host = self._hosts.get(target)
        if host is not None:
            host.receive(message)
            end_if_forked(self._home)
        elif (source := self._sources.get(target)) is not None:
            source.receive(message)

    def _turn_source(self, task: TaskIndex, source: SourceHost) -> bool:
        self.at = task
        was_resting = source.resting
        worked = source.turn()
        end_if_forked(self._home)
        if source.resting is not was_resting or self._has_got_on(task, source):
            self._tell_beats()
        if worked:
            return True
        # Only now: a decision that is just being committed looks done to the thread that beats.
        over = self._over[task] = _Over(source.origin.finished, source.drained)
        if source.origin.settled and over != self._told_over.get(task):
            self._told_over[task] = over
            self._tell_beats()
        return False

    def _has_got_on(self, task: TaskIndex, source: SourceHost) -> bool:
        """Whether this is the first that is completed since a death: where nothing is until the next, a run ends."""
        before = self._completed_at_death.get(task)
        if before is None or source.origin.counts().completed <= before:
            return False
        del self._completed_at_death[task]
        return True

    def _turn_task(self, task: TaskIndex, host: assembly.Host) -> bool:
        self.at = task
        worked = host.turn()
        end_if_forked(self._home)
        host.flush()
        if task in self._ending and host.ended:
            self._ending.discard(task)
            confirmed = host.origin_host is None or host.origin_host.confirmed
            self._tell(control.Ended(task, confirmed))
        return worked

    def _wait(self) -> None:
        """Wait for a message, an order, a source, or the next thing that is due."""
        waits = [host.next_wake_s() for host in self._hosts.values()]
        waits += [source.next_wake_s() for source in self._sources.values()]
        if self._sources and not self._watch_sources():
            waits.append(ASK_EVERY_S)
        wait_s = min((wait for wait in waits if wait is not None), default=None)
        self._affinity.bind()
        ready = self._poller.poll(None if wait_s is None else math.ceil(wait_s * 1000))
        self._affinity.free()
        if any(found == self._wake_read for found, _ in ready):
            os.read(self._wake_read, 4096)

    def _watch_sources(self) -> bool:
        """Wait for the sources too that may be read. False: one cannot be waited for, only asked."""
        found = [source.fileno() for source in self._sources.values() if source.wants_to_read]
        fds = {fd for fd in found if fd is not None}
        for fd in self._watched_fds - fds:
            self._poller.unregister(fd)
        for fd in fds - self._watched_fds:
            self._poller.register(fd, zmq.POLLIN)
        self._watched_fds = fds
        return None not in found

    # -- orders ----------------------------------------------------------------------------------

    def _obey(self, order: Any) -> None:
        self._told_over.clear()
        if isinstance(order, control.Wire):
            self._rewire(order)
        elif isinstance(order, control.Replay):
            self._replay(order)
        elif isinstance(order, control.RunEnd):
            self._end(order.task)
        elif isinstance(order, control.Drain):
            self._ending.add(order.task)
            self._hosts[order.task].drain()
        elif isinstance(order, control.StopReading):
            for source in self._sources.values():
                source.stop_reading()
        elif isinstance(order, control.Pause):
            for source in self._sources.values():
                source.pause(paused=order.paused)
        elif isinstance(order, control.WaitOn):
            self._affinity.wait_on(order.core)
        elif isinstance(order, control.AtWork):
            self._at_work_s = time.monotonic()
        elif isinstance(order, control.Judged):
            for task, guard in self._guards.items():
                if self._plan.task(task).node == order.node:
                    guard.judge(order.verdicts)
        elif isinstance(order, control.Quit):
            self._quit = True

    def _rewire(self, order: control.Wire) -> None:
        for worker in self._sockets.wire(order.endpoints):
            for index in self._plan.workers[worker].tasks if worker != self.worker else ():
                self._forget_credits(TaskIndex(index))
        self._tell(control.Switched(self.worker, order.version))
        failpoints.passed("worker.switched")

    def _forget_credits(self, task: TaskIndex) -> None:
        """A new incarnation of a task owes nothing."""
        for host in self._hosts.values():
            host.replica_restarted(task)
        for source in self._sources.values():
            source.host.replica_restarted(task)

    def _replay(self, order: control.Replay) -> None:
        if order.after_death:
            self._completed_at_death = {task: s.origin.counts().completed for task, s in self._sources.items()}
            self._beat_now.set()
        lost = order.after_death and not self._plan.options.robust
        for host in self._hosts.values():
            if lost:
                host.abandon()
            else:
                host.replay()
        for source in self._sources.values():
            if lost:
                source.origin.abandon()
            else:
                source.origin.replay(time.time())

    def _end(self, task: TaskIndex) -> None:
        self._ending.add(task)
        self.at, self.doing = task, "end"
        self._hosts[task].end()
        end_if_forked(self._home)
        self.doing = "process"

    # -- the supervisor --------------------------------------------------------------------------

    def _listen(self) -> None:
        """Read orders; without a supervisor there is nothing left to do."""
        try:
            while not self._quit:
                order = self._pipe.recv()
                if isinstance(order, control.TellBeats):
                    self._beat_now.set()
                elif isinstance(order, control.EndBeats):
                    self._end_beats()
                else:
                    self._orders.append(order)
                    self._wake()
        except (EOFError, OSError):
            if self._quit:
                return
            if self._offspring is not None:
                self.remove_socket_file()
                self._offspring.end()
                os._exit(EXIT_FAILED)
            self._quit = True
            self._wake()

    def _wake(self) -> None:
        """Not after the end: in a thread, the descriptor's number is somebody else's by then."""
        end_if_forked(self._home)  # where what runs beside the loop comes back
        with self._waking:
            if self._wake_write >= 0:
                os.write(self._wake_write, b".")

    def _beat(self) -> None:
        while True:
            self._beat_now.wait(self._beat_every_s())
            self._beat_now.clear()
            if self._beats_over:
                return
            with contextlib.suppress(OSError):
                self._tell_beats()
            for source in self._sources.values():
                self._warn_of_blocking(source)

    def _beat_every_s(self) -> float:
        return max(QUICKEST_BEAT_S, min(BEAT_EVERY_S, self._plan.options.timeout_s / BEATS_IN_TIMEOUT))

    def _end_beats(self) -> None:
        self._beats_over = True
        self._beat_now.set()

    def _warn_of_blocking(self, source: SourceHost) -> None:
        """Once for each call of a source that waits where it must not; a slow one would not survive a kill."""
        since_s, limit_s = source.reading_since_s, self._plan.options.timeout_s
        if since_s is None or since_s in self._warned_of_s or time.monotonic() - since_s <= limit_s:
            return
        self._warned_of_s.add(since_s)
        tell(
            f"the source {shorten_repr(source.source)} has not come back from read() for {limit_s:g} s; meanwhile "
            "nothing that it has given is decided, and no stop is heard. read() must not wait: let it return [] while "
            "there is nothing, and fileno() say what to wait for; or give Producer a generator, which may wait"
        )

    def hanging_source(self) -> SourceError | None:
        """What to raise where a method of a source of this worker has not come back yet. Any thread may ask."""
        found = (source.hanging(time.monotonic()) for source in self._sources.values())
        return next((error for error in found if error is not None), None)

    def _tell_beats(self) -> None:
        self._tell(control.Beats(self.beats()))

    def beats(self) -> tuple[control.Beat, ...]:
        """How far each task is."""
        told = [_beat_of(task, host) for task, host in self._hosts.items()]
        told += [self._beat_of_source(task, source) for task, source in self._sources.items()]
        return tuple(told)

    def _beat_of_source(self, task: TaskIndex, source: SourceHost) -> control.Beat:
        counts, counted = source.origin.counts(), assembly.counts_now(source)
        over = self._over.get(task, _Over(False, False))
        return control.Beat(
            task,
            (counts.emitted, counts.completed),
            "",
            counts.emitted,
            counts.emitted,
            0,
            counted.busy_s,
            origin=counts,
            finished=over.finished,
            drained=over.drained,
            resting=source.resting,
            frames=counted.frames,
            waited_s=counted.waited_s,
            commit_s=counted.commit_s,
            read_share=counted.read_share,
            address=_address_of(source.source),
        )

    def _ask_stop(self, origin: TaskIndex, entry: FailureEntry) -> None:
        self._tell(control.StopAsked(origin, entry))

    def _tell(self, word: Any) -> None:
        end_if_forked(self._home)
        with self._lock:
            self._pipe.send(word)

    # -- the end ---------------------------------------------------------------------------------

    def _close(self) -> None:
        self.doing = "close"
        failpoints.passed("worker.closing")
        self._end_beats()
        last = self.beats()
        origins = self._origin_hosts()
        keep = self._plan.options.keep_failed
        failures = tuple(entry for origin in origins for entry in origin.store.failures(keep))
        confirmed = all(origin.confirmed for origin in origins)
        for task, source in self._sources.items():
            self.at = task
            source.close()
        for task, host in self._hosts.items():
            self.at = task
            host.close()
        self.close_sockets()
        self._tell(control.Closed(last, confirmed, failures))

    def close_after_error(self) -> None:
        """In a thread nobody else closes what is open: the journal and its lock, the source, the sockets."""
        for source in self._sources.values():
            with contextlib.suppress(Exception):
                source.close()
        self.close_sockets()

    def close_sockets(self) -> None:
        """Close everything that leads to other workers, and take the socket off the disk."""
        self._end_beats()
        self._sockets.close()
        self._inbox.close()
        self._context.destroy(0)
        with self._waking:
            if self._wake_write >= 0:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_write = -1

    def remove_socket_file(self) -> None:
        """From another thread than the loop's: only the file; the sockets die with the process."""
        with contextlib.suppress(OSError):
            os.unlink(self._inbox.path)
        remove_if_empty(self._spec.socket_folder)


def _homes(plan: Plan) -> list[WorkerIndex]:
    """Task → the worker that hosts it."""
    homes = {task: WorkerIndex(worker.index) for worker in plan.workers for task in worker.tasks}
    return [homes[task.index] for task in plan.tasks]


def _address_of(source: Source) -> Any:
    """A user's own class may have anything under that name."""
    with contextlib.suppress(Exception):
        if isinstance(source.address, (str, tuple)):
            return source.address
    return None


def _beat_of(task: TaskIndex, host: assembly.Host) -> control.Beat:
    counted = assembly.counts_now(host)
    occupied_with, waits = host.occupied_with, isinstance(host.node, Sink) and host.node._waits
    return control.Beat(
        task,
        host.progress(),
        "" if waits else occupied_with,
        counted.items_in,
        counted.items_out,
        counted.failed,
        counted.busy_s,
        below=host.origin_host.origin.counts() if host.origin_host is not None else None,
        frames=counted.frames,
        waited_s=counted.waited_s,
        commit_s=counted.commit_s,
        waiting=counted.waiting,
        waits=waits,
    )
