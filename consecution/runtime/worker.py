"""A worker: one task in a process of its own (or, for a source that cannot be shipped, in a thread).

The loop takes messages in, lets the host work, and sends what it has to say. Beside it two small threads:
one reads what the supervisor says (the end of that pipe means the supervisor is dead, and so is the
worker), one tells it that the task lives and how far it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import multiprocess.forkserver
import zmq

from consecution.errors import ConsecutionError, WorldError
from consecution.protocol.origin import FailureEntry
from consecution.protocol.poison import Guard, Verdict
from consecution.protocol.values import TaskIndex
from consecution.runtime import assembly, control, failpoints
from consecution.runtime.fork_server import leave_tracker
from consecution.runtime.memory import limit_memory
from consecution.runtime.origin_host import SourceHost, process_codec
from consecution.runtime.shipping import Shipment, read_parcel, unship
from consecution.runtime.slots import SlotNote
from consecution.sink import Sink
from consecution.transport.salvage import salvage
from consecution.transport.socket_folder import remove_if_empty
from consecution.transport.sockets import Inbox, SocketOutbox

MESSAGES_PER_TURN = 16
BEAT_EVERY_S = 0.25
ASK_EVERY_S = 0.005
"""How often a source without a descriptor is asked, while it has nothing."""
PR_SET_PDEATHSIG = 1
EXIT_FAILED = 70


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to know at its start, beside the shipment of its task."""

    task: TaskIndex
    incarnation: int
    epoch: str
    journal_path: str | None
    socket_folder: str
    failpoints: str
    environment: dict[str, str]
    verdicts: tuple[Verdict, ...] = ()
    memory_limit_bytes: int = 0


def run_worker(spec: WorkerSpec, pipe: Any, log: Any, parcel: Any, slot: Any = None) -> None:
    """The main function of a worker process."""
    _take_over_output(log)
    _take_over_environment(spec.environment)
    leave_tracker()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it_to_the_supervisor)
    _die_with_parent()
    failpoints.arm(spec.failpoints)
    worker: Worker | None = None
    try:
        limit_memory(spec.memory_limit_bytes)
        guard = Guard(None if slot is None else SlotNote(slot), spec.verdicts, salvage)
        worker = Worker(spec, pipe, unship(read_parcel(parcel)), in_process=True, guard=guard)
        worker.run()
    except BaseException as error:
        _report(pipe, spec.task, "start" if worker is None else worker.doing, error)
        if worker is not None:
            worker.close_sockets()
        _leave(EXIT_FAILED)
    _leave(0)


def _leave(code: int) -> None:
    """Exit without waiting for threads that user code has left behind."""
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
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    server = multiprocess.forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


def _report(pipe: Any, task: TaskIndex, doing: str, error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        pipe.send(control.Failed(task, doing, f"{type(error).__name__}: {error}", text, _pickled(error)))


def _pickled(error: BaseException) -> bytes | None:
    """One of our own errors, to be raised again by the supervisor; None for all others."""
    if not isinstance(error, ConsecutionError):
        return None
    try:
        blob = pickle.dumps(error)
        pickle.loads(blob)
    except Exception:
        return pickle.dumps(WorldError(str(error)))
    return blob


class Worker:
    """The loop of one task."""

    def __init__(
        self, spec: WorkerSpec, pipe: Any, shipment: Shipment, *, in_process: bool, guard: Guard | None = None
    ) -> None:
        self.task = spec.task
        self._guard = guard or Guard()
        self.doing = "start"
        self._spec = spec
        self._pipe = pipe
        self._in_process = in_process
        self._lock = threading.Lock()
        self._orders: deque[Any] = deque()
        self._waking = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._quit = False
        self._supervisor_gone = False
        self._stop_beating = threading.Event()
        self._ending = False
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._inbox = Inbox(self._context, spec.socket_folder, f"{spec.task}.{spec.incarnation}")
        self._outbox = SocketOutbox(self._context)
        self._poller = zmq.Poller()
        self._poller.register(self._inbox.socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._source_fd: int | None = None
        self._plan = shipment.plan
        self._source: SourceHost | None = None
        self._host: assembly.Host | None = None
        self._make_host(shipment)

    def _make_host(self, shipment: Shipment) -> None:
        plan, spec = self._plan, self._spec
        codecs = process_codec(robust=plan.options.robust)
        path = None if spec.journal_path is None else Path(spec.journal_path)
        if plan.node(plan.task(self.task).node).is_source:
            assert shipment.source is not None
            self._source = assembly.make_source_host(
                plan,
                shipment.source,
                codecs,
                self._outbox,
                journal_path=path,
                epoch=spec.epoch,
                now=time.time,
                on_stop=self._ask_stop,
                guard=self._guard,
            )
            return
        assert shipment.node is not None
        self._host = assembly.make_host(
            plan,
            self.task,
            shipment.node,
            codecs,
            self._outbox,
            path=path,
            epoch=spec.epoch,
            guard=self._guard,
            on_stop=self._ask_stop,
        )

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Say hello, begin, work until told to quit."""
        threading.Thread(target=self._listen, name="consecution-orders", daemon=True).start()
        threading.Thread(target=self._beat, name="consecution-beat", daemon=True).start()
        self._tell(control.Hello(self.task, self._inbox.endpoint, os.getpid()))
        self.doing = "begin"
        if self._source is not None:
            self._source.open()
        else:
            assert self._host is not None
            self.doing = "open" if isinstance(self._host.node, Sink) else "begin"
            self._host.begin()
        self._tell(control.Began(self.task))
        failpoints.passed("worker.begun")
        self.doing = "process"
        while not self._quit:
            self._turn()
        self._close()

    def _turn(self) -> None:
        while self._orders:
            self._obey(self._orders.popleft())
        if self._source is not None:
            worked = self._turn_source(self._source)
        else:
            assert self._host is not None
            worked = self._turn_task(self._host)
        if not worked and not self._orders and not self._quit:
            self._wait()

    def _turn_source(self, source: SourceHost) -> bool:
        worked = False
        for message in self._inbox.take(1000):
            worked = True
            source.receive(message)
        if source.turn():
            return True
        # Only now: a decision that is just being committed looks done to the thread that beats.
        self._finished, self._drained = source.origin.finished, source.drained
        if source.origin.settled and not self._told_settled:
            self._told_settled = True
            self._tell(self.beat())
        return worked

    _told_settled = False
    _finished = False
    _drained = False

    def _turn_task(self, host: assembly.Host) -> bool:
        worked = False
        for message in self._inbox.take(MESSAGES_PER_TURN):
            worked = True
            host.receive(message)
            if self._orders:
                break  # a death must not wait for all that is in the inbox
        worked = host.turn() or worked
        host.flush()
        if self._ending and host.ended:
            self._ending = False
            confirmed = host.origin_host is None or host.origin_host.confirmed
            self._tell(control.Ended(self.task, confirmed))
        return worked

    def _wait(self) -> None:
        """Wait for a message, an order, the source, or the next thing that is due."""
        wait_s = None
        if self._source is not None:
            wait_s = self._source.next_wake_s()
            if not self._watch_source(self._source):
                wait_s = ASK_EVERY_S if wait_s is None else min(wait_s, ASK_EVERY_S)
        else:
            wait_s = self._task_host.next_wake_s()
        ready = self._poller.poll(None if wait_s is None else math.ceil(wait_s * 1000))
        if any(found == self._wake_read for found, _ in ready):
            os.read(self._wake_read, 4096)

    def _watch_source(self, source: SourceHost) -> bool:
        """Wait for the source too, if it may be read. False: it cannot be waited for, only asked."""
        wanted = source.wants_to_read
        fd = source.source.fileno() if wanted else None
        if fd != self._source_fd:
            if self._source_fd is not None:
                self._poller.unregister(self._source_fd)
            if fd is not None:
                self._poller.register(fd, zmq.POLLIN)
            self._source_fd = fd
        return not wanted or fd is not None

    # -- orders ----------------------------------------------------------------------------------

    def _obey(self, order: Any) -> None:
        self._told_settled = False
        if isinstance(order, control.Wire):
            moved = self._outbox.wire(order.endpoints)
            for task in moved:
                (self._source.host if self._source is not None else self._task_host).replica_restarted(task)
            self._tell(control.Switched(self.task, order.version))
            failpoints.passed("worker.switched")
        elif isinstance(order, control.Replay):
            self._replay(order)
        elif isinstance(order, control.RunEnd):
            self._end()
        elif isinstance(order, control.Drain):
            self._ending = True
            self._task_host.drain()
        elif isinstance(order, control.StopReading):
            assert self._source is not None
            self._source.stop_reading()
        elif isinstance(order, control.Judged):
            self._guard.judge(order.verdicts)
        elif isinstance(order, control.Quit):
            self._quit = True

    @property
    def _task_host(self) -> assembly.Host:
        assert self._host is not None
        return self._host

    def _replay(self, order: control.Replay) -> None:
        if self._source is None:
            if order.after_death and not self._plan.options.robust:
                self._task_host.abandon()
            else:
                self._task_host.replay()
            return
        origin = self._source.origin
        if order.after_death and not self._plan.options.robust:
            origin.abandon()
        else:
            origin.replay(time.time())

    def _end(self) -> None:
        self._ending = True
        self.doing = "end"
        self._task_host.end()
        self.doing = "process"

    # -- the supervisor --------------------------------------------------------------------------

    def _listen(self) -> None:
        """Read orders; without a supervisor there is nothing left to do."""
        try:
            while not self._quit:
                self._orders.append(self._pipe.recv())
                self._wake()
        except (EOFError, OSError):
            if self._quit:
                return
            if self._in_process:
                self.remove_socket_file()
                os._exit(EXIT_FAILED)
            self._quit = True
            self._wake()

    def _wake(self) -> None:
        """Not after the end: in a thread, the descriptor's number is somebody else's by then."""
        with self._waking:
            if self._wake_write >= 0:
                os.write(self._wake_write, b".")

    def _beat(self) -> None:
        while not self._stop_beating.wait(BEAT_EVERY_S):
            with contextlib.suppress(OSError):
                self._tell(self.beat())
            if self._source is not None:
                self._warn_of_blocking(self._source)

    def _warn_of_blocking(self, source: SourceHost) -> None:
        """Once for each call of a source that waits where it must not; a slow one would not survive a kill."""
        since_s, limit_s = source.reading_since_s, self._plan.options.timeout_s
        if since_s is None or since_s == self._warned_of_s or time.monotonic() - since_s <= limit_s:
            return
        self._warned_of_s = since_s
        print(
            f"the source {source.source!r} has not come back from read() for {limit_s:g} s; meanwhile nothing that it "
            "has given is decided, and no stop is heard. read() must not wait: let it return [] while there is "
            "nothing, and fileno() say what to wait for; or give Producer a generator, which may wait",
            file=sys.stderr,
        )

    _warned_of_s: float | None = None

    def beat(self) -> control.Beat:
        """How far this task is."""
        if self._source is not None:
            origin = self._source.origin
            counts = origin.counts()
            return control.Beat(
                self.task,
                (counts.emitted, counts.completed),
                "",
                counts.emitted,
                counts.emitted,
                0,
                0.0,
                origin=counts,
                finished=self._finished,
                drained=self._drained,
            )
        host = self._task_host
        counted = host.counts
        below = host.origin_host.origin.counts() if host.origin_host is not None else None
        return control.Beat(
            self.task,
            host.progress(),
            "" if getattr(host.node, "_waits", False) else host.occupied_with,
            counted.items_in,
            counted.items_out,
            counted.failed,
            counted.busy_s,
            below=below,
        )

    def _ask_stop(self, origin: TaskIndex, entry: FailureEntry) -> None:
        self._tell(control.StopAsked(origin, entry))

    def _tell(self, word: Any) -> None:
        with self._lock:
            self._pipe.send(word)

    # -- the end ---------------------------------------------------------------------------------

    def _close(self) -> None:
        self.doing = "close"
        failpoints.passed("worker.closing")
        self._stop_beating.set()
        keep = self._plan.options.keep_failed
        last = self.beat()
        failures: list[FailureEntry] = []
        confirmed = True
        if self._source is not None:
            failures = self._source.host.store.failures(keep)
            confirmed = self._source.host.confirmed
            self._source.close()
        else:
            ended = self._task_host.origin_host
            if ended is not None:
                failures, confirmed = ended.store.failures(keep), ended.confirmed
            self._task_host.close()
        self.close_sockets()
        self._tell(control.Closed(last, confirmed, tuple(failures)))

    def close_after_error(self) -> None:
        """In a thread nobody else closes what is open: the journal and its lock, the source, the sockets."""
        with contextlib.suppress(Exception):
            if self._source is not None:
                self._source.close()
        self.close_sockets()

    def close_sockets(self) -> None:
        """Close everything that leads to other tasks, and take the socket off the disk."""
        self._stop_beating.set()
        self._outbox.close()
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
