"""The Engine contract: run a plan, return a report. One engine per mode, in `consecution.engines`."""

from __future__ import annotations

import _thread
import contextlib
import importlib
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from consecution.errors import UsageError, add_note, text_of
from consecution.options import Options
from consecution.plan import Plan, make_plan
from consecution.report import Report, Status

if TYPE_CHECKING:
    from consecution.pipeline import Pipeline
    from consecution.sources.manual import Receipt

OnStatus = Callable[[Status], None]
STATUS_EVERY_S = 0.5

ENGINES = {
    "inline": "consecution.engines.inline",
    "thread": "consecution.engines.thread",
    "process": "consecution.engines.process",
}
"""Mode → module with a function ``start(plan, pipeline, iterable, options) -> Running``."""
STATE = "consecution.runtime.state"
"""The module that knows what a state directory holds."""
DISPLAY = "consecution.runtime.progress"
"""The module that shows how far a run is."""
PREPARED = {"process": "consecution.runtime.fork_server"}
"""Mode → module with a function ``prepare()``: it gets under way what takes time, before the engine is imported."""


class Running(ABC):
    """A run that has been started. A context manager: leaving it waits for the end.

    Leaving after an exception stops instead, and so does Ctrl-C while leaving; what the run itself ended
    with is then a note of that exception. `push` may be called by any thread, the rest by one.
    """

    @abstractmethod
    def push(self, item: Any, timeout_s: float | None = None, *, source: str | None = None) -> Receipt:
        """Hand an item to a ``Producer("manual")``; blocks while the pipeline is full.

        ``source`` is the producer's name, needed where there are several. Raises BackPressureError after
        ``timeout_s`` (None: wait as long as it takes), NotRunningError once the run has ended, UsageError where
        no source is a manual one. The receipt is done when the item is completely processed; it is granted per
        batch.
        """

    @abstractmethod
    def status(self) -> Status:
        """What the run has done so far."""

    @abstractmethod
    def request_stop(self) -> None:
        """Take nothing new and finish what is open; returns at once. A signal handler may call it."""

    @abstractmethod
    def abort(self) -> None:
        """Stop at once, as after a crash: nothing is lost in ``robust``. A signal handler may call it."""

    @abstractmethod
    def pause(self) -> None:
        """Read no source until `resume`; what is open is finished, and the run goes on. A stop goes before a pause.

        Returns at once: the status says ``pausing``, and ``paused`` once no source is read any more. Any thread
        may call it.
        """

    @abstractmethod
    def resume(self) -> None:
        """Read the sources again. Harmless where nothing is paused."""

    def interrupt(self) -> None:
        """`abort`, and break off user code that runs in this very thread. For signal handlers."""
        self.abort()

    @abstractmethod
    def finish_input(self) -> None:
        """No more items will be pushed. Nothing happens where the source ends by itself."""

    @abstractmethod
    def join(self, timeout_s: float | None) -> Report | None:
        """Wait for the end, and not longer than ``timeout_s``; None: not yet. Raises what ended the run."""

    def wait(self, timeout_s: float | None = None) -> Report:
        """Wait until the stream is completely processed. A manual source gets no more items.

        Raises TimeoutError after ``timeout_s``; the run goes on. Once it has ended, every call gives the
        same report, or raises the same error.
        """
        self.finish_input()
        report = self.join(timeout_s)
        if report is None:
            raise TimeoutError(f"the run has not ended within {timeout_s} s: {self.status()}; wait again, or stop() it")
        return report

    def stop(self, timeout_s: float | None = None) -> Report:
        """Take nothing new, finish what is open, and report. ``end()`` does not run.

        After ``timeout_s`` (None: the option ``stop_timeout_s``) what is open is left for the next run.
        """
        self.request_stop()
        report = self.join(self.stop_timeout_s if timeout_s is None else timeout_s)
        if report is None:
            self.abort()
            report = self.join(None)
        assert report is not None
        return report

    stop_timeout_s: float = 30.0

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            self._stop_after(error)
            return
        try:
            self.wait()
        except (KeyboardInterrupt, SystemExit) as impatience:
            self._stop_after(impatience)
            raise

    def _stop_after(self, error: BaseException) -> None:
        """Stop because of ``error``, which stays the one that is raised; a second Ctrl-C stops at once."""
        try:
            self.stop()
        except Exception as second:
            if second is not error:
                add_note(error, f"and the run ended with {text_of(second)}")
        except BaseException:
            self.abort()
            raise


def start(pipeline: Pipeline, iterable: Any, options: Options) -> Running:
    """Start a run of ``pipeline`` over ``iterable`` (None: over its own Producer)."""
    options.check_that_none_is_in_vain()
    plan = make_plan(pipeline.top_node, options, has_iterable=iterable is not None)
    if options.mode in PREPARED:
        importlib.import_module(PREPARED[options.mode]).prepare()
    plan = with_shares_of_before(plan, pipeline, iterable)
    module = importlib.import_module(ENGINES[options.mode])
    running: Running = module.start(plan, pipeline, iterable, options)
    running.stop_timeout_s = options.stop_timeout_s
    return running


def with_shares_of_before(plan: Plan, pipeline: Pipeline, iterable: Any) -> Plan:
    """The plan with each source in as many shares as the run had that is to go on here, where nobody asks otherwise."""
    options = plan.options
    if not options.robust or options.fresh or options.state_dir is None or not options.state_dir.is_dir():
        return plan
    shares = importlib.import_module(STATE).shares_before(options.state_dir)
    if all(shares.get(node.name, node.replicas) == node.replicas for node in plan.nodes if node.is_source):
        return plan
    return make_plan(pipeline.top_node, options, has_iterable=iterable is not None, shares=shares)


def run(pipeline: Pipeline, iterable: Any, options: Options, *, on_status: OnStatus | None = None) -> Report:
    """Run to the end and report. In the main thread the first SIGINT or SIGTERM drains, a second aborts.

    Whatever else breaks in here (``on_status``, say) aborts the run before it is raised.
    """
    plan_source_is_manual(pipeline, iterable)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_Signals(options.stop_timeout_s))
        tell = [on_status] if on_status is not None else []
        if options.progress:
            display = importlib.import_module(DISPLAY).make_display(options)
            stack.callback(display.clear)
            tell.append(display)
        running = start(pipeline, iterable, options)
        try:
            signals.stop_from_now_on(running)
            return _join_telling(running, tell)
        except BaseException:
            running.abort()
            with contextlib.suppress(Exception):
                running.join(None)
            raise


def _join_telling(running: Running, tell: list[OnStatus]) -> Report:
    running.finish_input()
    while (report := running.join(STATUS_EVERY_S)) is None:
        for on_status in tell:
            on_status(running.status())
    return report


def plan_source_is_manual(pipeline: Pipeline, iterable: Any) -> None:
    """Refuse ``run`` where nobody could ever push: a manual producer needs ``start``."""
    manual = next((source for source in pipeline._producers() if source.kind == "manual"), None)
    if iterable is None and manual is not None:
        raise UsageError(
            f"{manual}: run() has nobody who could push items into a manual producer; use "
            "`with pipeline.start(...) as running: running.push(item)`, or give run() an iterable"
        )


class _Signals:
    """Lets SIGINT and SIGTERM stop a run, in the main thread.

    What comes while the run is started is remembered; a second one then breaks the start off. What is
    ignored (``nohup``) stays so, and so does what only C could put back. Where this run is part of an item of
    another one, signals are that one's: what a node gets of a run must be all of it. The end of the grace time
    is a second signal, from ourselves: where the main thread hangs in user code, nothing else reaches it.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = min(grace_s, threading.TIMEOUT_MAX)
        self._main = threading.get_ident()
        self._asked = False
        self._over = threading.Lock()
        """Held until the run is over: who waits for that has it when it is."""
        self._sending = threading.Lock()
        self._running: Running | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        self._over.acquire()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                found = signal.getsignal(number)
                if found not in (None, signal.SIG_IGN) and not _is_ours(found):
                    self._old[number] = found
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        with self._sending:  # a signal of ours must not meet the handlers of others
            self._over.release()
        for number, handler in self._old.items():
            if signal.getsignal(number) == self._handle:  # else user code wants another one from now on
                signal.signal(number, handler)

    def stop_from_now_on(self, running: Running) -> None:
        """The run has been started."""
        self._running = running
        if self._asked:
            running.request_stop()

    def _await_grace(self, signum: int) -> None:
        """In a thread of its own."""
        if self._over.acquire(timeout=self._grace_s):
            return
        with self._sending:
            if self._over.locked():
                signal.pthread_kill(self._main, signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._asked:
            self._asked = True
            # Not by `threading`: the main thread may hold that one's lock just now.
            with contextlib.suppress(RuntimeError):  # no thread can be started; a second signal still helps
                _thread.start_new_thread(self._await_grace, (signum,))
            if self._running is not None:
                self._running.request_stop()
        elif self._running is not None:
            self._running.interrupt()
        else:
            raise KeyboardInterrupt


def _is_ours(handler: Any) -> bool:
    """Whether another run has set it, or the worker that this is."""
    return str(getattr(handler, "__module__", "")).startswith("consecution.")


__all__ = ["Plan", "Running", "run", "start"]
