"""Nodes that misbehave, for the process engine: at the top of a module, so that workers can import them."""

from __future__ import annotations

import concurrent.futures
import ctypes
import io
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from consecution import KeyedNode, Node, Sink, Source

LONGEST_WAIT_S = 30.0


def hang() -> None:
    while True:
        time.sleep(3600)


def hang_with_the_interpreter() -> None:
    """Native code that never gives the interpreter back."""
    ctypes.PyDLL(None).sleep(3600)


WAYS: dict[str, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "exit 255": lambda: os._exit(255),
    "segfault": lambda: ctypes.string_at(0),
    "hang": hang,
    "hang with the interpreter": hang_with_the_interpreter,
}


class Copy(Node):
    def process(self, item: Any) -> None:
        self.push(item)


class Misbehaving(Node):
    """Passes items on, but comes to grief at ``at``; with a token only as long as that file is there."""

    def __init__(self, name: str, way: str, at: Any, token: Path | None = None) -> None:
        super().__init__(name)
        self.way, self.at, self.token = way, at, token

    def process(self, item: Any) -> None:
        if item == self.at and self._still_bad():
            WAYS[self.way]()
        self.push(item)

    def _still_bad(self) -> bool:
        if self.token is None:
            return True
        try:
            self.token.unlink()
        except FileNotFoundError:
            return False
        return True


class Gate(Node):
    """Says with a file that an item has come, and passes it on when another file is there."""

    def __init__(self, name: str, at: Any, folder: Path) -> None:
        super().__init__(name)
        self.at, self.reached, self.opened = at, folder / "reached", folder / "opened"

    def process(self, item: Any) -> None:
        if item == self.at:
            self.reached.touch()
            wait_for(self.opened.exists)
        self.push(item)


def wait_for(condition: Callable[[], Any], within_s: float = LONGEST_WAIT_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{condition} did not come true"
        time.sleep(0.005)


class FailsIn(Node):
    """Raises in one of its steps."""

    def __init__(self, name: str, step: str) -> None:
        super().__init__(name)
        self.step = step

    def begin(self) -> None:
        self._fail("begin")

    def process(self, item: Any) -> None:
        self._fail("process")
        self.push(item)

    def end(self) -> None:
        self._fail("end")

    def _fail(self, step: str) -> None:
        if step == self.step:
            raise ValueError(f"no {step} today")


class FailsInBegin(Node):
    def begin(self) -> None:
        raise ValueError("no begin today")


class DiesInBegin(Copy):
    def __init__(self, name: str, *, dies: bool) -> None:
        super().__init__(name)
        self.dies = dies

    def begin(self) -> None:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)


class ClosesBadly(Sink):
    def write(self, batch_id: Any, items: list[Any]) -> None:
        pass

    def close(self) -> None:
        raise ValueError("no close today")


class DiesInClose(Sink):
    """Dies once while it closes."""

    def __init__(self, name: str, token: Path) -> None:
        super().__init__(name)
        self.token = token

    def write(self, batch_id: Any, items: list[Any]) -> None:
        pass

    def close(self) -> None:
        if self.token.exists():
            self.token.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class Chatty(Node):
    def process(self, item: Any) -> None:
        print("printed", item)
        sys.stderr.write(f"to stderr {item}\n")
        logging.getLogger("user").warning("logged %s", item)
        os.write(1, b"native\n")
        print("half a line", end="")
        self.push(item)


class Rude(Node):
    """Does what one should not: leaves the folder, closes the standard descriptors, leaves threads and children."""

    def begin(self) -> None:
        os.chdir("/")
        for fd in range(3):
            os.close(fd)
        threading.Thread(target=hang).start()
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)

    def process(self, item: Any) -> None:
        self.push(item)


class Deaf(Node):
    """Leaves no standard error that could be written to, and gives cause for a warning."""

    def __init__(self, name: str, way: str) -> None:
        super().__init__(name)
        self.way = way

    def begin(self) -> None:
        self.count = 0
        if self.way == "closed":
            sys.stderr.close()
        else:
            sys.stderr = None if self.way == "none" else io.BytesIO()  # type: ignore[assignment]

    def process(self, item: Any) -> None:
        self.count += 1
        self.push(item)


class Unlookable(Copy):
    """Has an attribute that takes it amiss to be looked at."""

    def begin(self) -> None:
        self.secret = _Secret()


class _Secret:
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("do not look")


class Parent(Copy):
    """Leaves a child that holds everything it inherited; notes its pid."""

    def __init__(self, name: str, note: Path) -> None:
        super().__init__(name)
        self.note = note

    def begin(self) -> None:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        self.note.write_text(str(pid))


class NotesPid(Copy):
    """Notes the pid of its worker as it begins."""

    def __init__(self, name: str, note: Path) -> None:
        super().__init__(name)
        self.note = note

    def begin(self) -> None:
        self.note.write_text(str(os.getpid()))


class DurableParent(Parent):
    def end(self) -> None:
        """Makes it durable."""


class Forks(Copy):
    """Leaves the child of a fork behind in its own ``step``, where it goes on as the parent does; notes the pids."""

    def __init__(self, name: str, step: str, note: Path) -> None:
        super().__init__(name)
        self.step, self.note = step, note

    def begin(self) -> None:
        self._fork("begin")

    def process(self, item: Any) -> None:
        if item == 3:
            self._fork("process")
        self.push(item)

    def _fork(self, step: str) -> None:
        if step != self.step:
            return
        pid = os.fork()
        if pid != 0:
            with self.note.open("a") as note:
                note.write(f"{pid}\n")


class ForksAndCounts(Forks, KeyedNode):
    """The same in a durable node."""

    def key(self, item: Any) -> Any:
        return item % 3


class Pools(Copy):
    """Lets processes of multiprocessing work for it, and never ends them; notes their pids."""

    def __init__(self, name: str, note: Path) -> None:
        super().__init__(name)
        self.note = note

    def begin(self) -> None:
        context = multiprocessing.get_context("fork")
        self.executor = concurrent.futures.ProcessPoolExecutor(2, mp_context=context)
        self.pool = context.Pool(2)
        assert self.executor.submit(abs, -1).result() == self.pool.apply(abs, (-1,))
        children = multiprocessing.active_children()
        with self.note.open("a") as note:
            note.write("".join(f"{child.pid}\n" for child in children))


def pids_in(note: Path) -> list[int]:
    return [int(line) for line in note.read_text().split()]


def is_gone(pid: int) -> bool:
    """Dead, though perhaps nobody has reaped it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


class Environment(Node):
    def process(self, item: Any) -> None:
        self.push(os.environ.get(item))


class StateReader(Node):
    def process(self, item: Any) -> None:
        self.push(len(self.global_state.table))


class ClosesWithError(Source):
    """Ends at once, and raises when it is closed."""

    in_parent = True

    def open(self, position: Any) -> None:
        pass

    def read(self, max_items: int) -> None:
        return None

    def position(self) -> None:
        return None

    def close(self) -> None:
        raise RuntimeError("cannot close")


class Waiting(Source):
    """A source whose ``read`` waits until a file is there; then it gives one item."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0

    def open(self, position: Any) -> None:
        self._count = position or 0

    def read(self, max_items: int) -> list[Any] | None:
        if self._count:
            return None
        wait_for(self.path.exists)
        self._count = 1
        return [1]

    def position(self) -> int:
        return self._count
