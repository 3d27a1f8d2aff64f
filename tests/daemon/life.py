"""The life of a daemon: work comes all the time, and so does trouble; what it takes of the machine is looked at.

Trouble: workers, or everything, are killed; the log is rotated; the database of the results is locked; some lines are
no payments; a node is slow now and then. Where there is a PostgreSQL server, its sessions are cut off, and it is
stopped and started. In the end every payment must be in the totals, in the file and in the server's table once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consecution.runtime.state_table import LOG_LIMIT_BYTES
from tests.daemon.server import URL_FILE, Server
from tests.faults.revived import DEADLINE_S, Revived

TURN_S = 0.05
ACCOUNTS = 100
LINES_PER_FILE = 4000
FILES_KEPT = 20
BAD_LINES = 5
LOCKED_S = 0.5
SUMS = "SELECT account, sum(cents) FROM ledger GROUP BY account"
SLACK = {"memory_mib": 64.0, "handles": 12.0, "disk_mib": 8.0 + 2 * LOG_LIMIT_BYTES / 2**20}
"""By so much more than at first, or by a quarter, what it takes may be in the end: the log of each replica's state
grows up to its limit before it is merged, and memory with it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What all processes of the daemon hold (memory of their own, without mapped files), and its state directory."""

    at_s: float
    memory_mib: float
    handles: float
    disk_mib: float


@dataclass(slots=True)
class Story:
    """What has happened. ``problems`` is empty where all is as it should be.

    ``reconnects`` counts the times that sessions of the daemon were cut off, ``restarts`` those of the server;
    ``no_server`` says why there was none.
    """

    seed: int
    lines: int = 0
    rows: int = 0
    rotations: int = 0
    kills: int = 0
    locks: int = 0
    reconnects: int = 0
    restarts: int = 0
    no_server: str = ""
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = f"seed {self.seed}: {self.lines:,} lines, {self.rows:,} rows, {self.rotations} rotations, "
        told += f"{self.kills} kills, {self.locks} locks, "
        told += self.no_server or f"{self.reconnects} reconnects, {self.restarts} restarts of the server"
        for name in SLACK if len(self.samples) >= 10 else ():
            first, last = ends_of(self.samples, name)
            told += f"\n  {name} {first:.1f} at first, {last:.1f} in the end"
        return "\n".join([told, *(f"  WRONG: {problem}" for problem in self.problems)])


def ends_of(samples: list[Sample], name: str) -> tuple[float, float]:
    """The medians of the second tenth, when all has warmed up, and of the last one."""
    tenth = max(1, len(samples) // 10)
    values = [getattr(sample, name) for sample in samples]
    return statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])


def growths(samples: list[Sample]) -> list[str]:
    """What has grown, in words."""
    found = []
    for name, slack in SLACK.items():
        first, last = ends_of(samples, name)
        if last > max(first + slack, 1.25 * first):
            found.append(f"{name} has grown from {first:.1f} to {last:.1f}")
    return found


class World:
    """Everything around the daemon: who writes, rotates, kills, locks, cuts off and looks."""

    def __init__(
        self, folder: Path, seed: int, *, per_second: int, kill_every_s: float, server: Server | str = ""
    ) -> None:
        self.story = Story(seed, no_server=server if isinstance(server, str) else "")
        self._server = server if isinstance(server, Server) else None
        self._troubles: list[Callable[[Revived], bool]] = []
        self._folder = folder
        self._random = random.Random(seed)
        self._per_second = per_second
        self._kill_every_s = kill_every_s
        self._totals: Counter[str] = Counter()
        self._given: Counter[tuple[str, int]] = Counter()
        self._bad_left = BAD_LINES
        self._known = False
        (folder / "logs").mkdir()
        self._table = sqlite3.connect(folder / "in.db", timeout=DEADLINE_S)
        self._table.execute("CREATE TABLE payments (id INTEGER PRIMARY KEY, account TEXT, cents INTEGER)")
        self._table.commit()
        if self._server:
            (folder / URL_FILE).write_text(self._server.url)

    def live(self, seconds: float) -> Story:
        """So long a life, or longer: until each trouble has come once. Then the judgement."""
        daemon = Revived(self._folder, str(Path(__file__).with_name("job.py")))
        try:
            self._live(daemon, seconds)
            self._await_all(daemon)
            code, report = daemon.stop(), daemon.report()
            assert code == (1 if report["failed"] else 0), daemon.log()
            self._judge(report)
        finally:
            daemon.remove()
            self._table.close()
        return self.story

    def _live(self, daemon: Revived, seconds: float) -> None:
        began_s = time.monotonic()
        kill_s = began_s + self._kill_every_s
        sample_s = began_s + 1.0
        give_up_s = began_s + seconds + DEADLINE_S
        while (now_s := time.monotonic()) < began_s + seconds or (not self._had_all() and now_s < give_up_s):
            self._work()
            if now_s >= kill_s and self._trouble(daemon):
                kill_s = now_s + self._kill_every_s * self._random.uniform(0.5, 1.5)
            daemon.revive()
            if now_s >= sample_s:
                sample_s = now_s + 1.0
                self._sample(daemon, now_s - began_s)
            time.sleep(TURN_S)

    def _work(self) -> None:
        count = int(self._per_second * TURN_S)
        lines = [self._next_line() for _ in range(count)]
        with open(self._folder / "logs" / "app.log", "a") as file:
            file.writelines(lines)
        rows = [self._pay("table", self.story.rows + 1 + at) for at in range(count // 4)]
        self.story.rows += len(rows)
        self._table.executemany("INSERT INTO payments (account, cents) VALUES (?, ?)", rows)
        self._table.commit()
        if self.story.lines // LINES_PER_FILE > self.story.rotations and self._is_known():
            self._rotate()

    def _next_line(self) -> str:
        self.story.lines += 1
        if self._bad_left and self.story.lines % 100 == 0:
            self._bad_left -= 1
            return "no payment at all\n"
        account, cents = self._pay("log", self.story.lines)
        return f"{self.story.lines} {account} {cents}\n"

    def _pay(self, source: str, number: int) -> tuple[str, int]:
        account, cents = f"account-{number % ACCOUNTS}", self._random.randrange(10_000)
        self._totals[account] += cents
        self._given[source, number] += 1
        return account, cents

    def _is_known(self) -> bool:
        """Whether the daemon has a place in the log: a file that was rotated before is none of its own, as for tail."""
        self._known = self._known or any(source == "log" for source, _ in self._written())
        return self._known

    def _rotate(self) -> None:
        self.story.rotations += 1
        log = self._folder / "logs" / "app.log"
        for number in range(FILES_KEPT, 0, -1):
            older = log.with_name(f"app.log.{number}")
            if older.exists():
                older.rename(log.with_name(f"app.log.{number + 1}"))
        log.rename(log.with_name("app.log.1"))

    def _had_all(self) -> bool:
        story = self.story
        of_server = (story.reconnects, story.restarts) if self._server else ()
        return all((story.rotations, story.kills, story.locks, *of_server))

    def _trouble(self, daemon: Revived) -> bool:
        """The next trouble; False: there was nothing to trouble yet, so it is still to come."""
        if not self._troubles:
            self._troubles = self._shuffled_troubles()
        came = self._troubles[-1](daemon)
        if came:
            self._troubles.pop()
        return came

    def _shuffled_troubles(self) -> list[Callable[[Revived], bool]]:
        """Each once, in any order."""
        troubles = [self._kill_two, self._kill_all, self._lock_the_results]
        if self._server:
            troubles += [self._cut_off, self._restart_the_server]
        self._random.shuffle(troubles)
        return troubles

    def _kill_two(self, daemon: Revived) -> bool:
        pids = daemon.pids()
        return self._kill(daemon, self._random.sample(pids, min(len(pids), 2)))

    def _kill_all(self, daemon: Revived) -> bool:
        return self._kill(daemon, daemon.pids())

    def _kill(self, daemon: Revived, pids: list[int]) -> bool:
        daemon.kill(pids)
        self.story.kills += bool(pids)
        return bool(pids)

    def _lock_the_results(self, daemon: Revived) -> bool:
        self.story.locks += 1
        made = sqlite3.connect(self._folder / "out.db", isolation_level=None)
        with contextlib.closing(made) as database, contextlib.suppress(sqlite3.OperationalError):
            database.execute("BEGIN EXCLUSIVE")
            time.sleep(LOCKED_S)
            database.execute("ROLLBACK")
        return True

    def _cut_off(self, daemon: Revived) -> bool:
        assert self._server is not None
        ended = self._server.end_sessions()
        self.story.reconnects += bool(ended)
        return bool(ended)

    def _restart_the_server(self, daemon: Revived) -> bool:
        assert self._server is not None
        self.story.restarts += 1
        self._server.restart(self._random.choice([signal.SIGINT, signal.SIGQUIT]))
        return True

    def _sample(self, daemon: Revived, at_s: float) -> None:
        memory, handles = 0, 0
        for pid in daemon.pids():
            with contextlib.suppress(OSError, IndexError):  # it is gone, or a zombie
                status = Path(f"/proc/{pid}/status").read_text()
                memory += int(status.partition("RssAnon:")[2].split()[0]) * 1024
                handles += len(os.listdir(f"/proc/{pid}/fd"))
        disk = 0
        for path in (self._folder / "state").rglob("*"):
            with contextlib.suppress(OSError):
                disk += path.stat().st_blocks * 512
        self.story.samples.append(Sample(at_s, memory / 2**20, handles, disk / 2**20))

    # -- in the end ------------------------------------------------------------------------------

    def _written(self) -> Iterator[tuple[str, int]]:
        path = self._folder / "audit.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # the last one may be half written
                source, number, *_ = json.loads(line)
                yield source, number

    def _recorded(self) -> Iterator[tuple[str, int]]:
        """What the server has; all that there is where there is no server."""
        if self._server is None:
            yield from self._given.elements()
        elif self._server.has("ledger"):
            yield from self._server.ask("SELECT source, number FROM ledger")

    def _await_all(self, daemon: Revived) -> None:
        give_up_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < give_up_s and not self._all_are_there():
            daemon.revive()
            time.sleep(0.2)

    def _all_are_there(self) -> bool:
        return all(sum(1 for _ in places) >= len(self._given) for places in (self._written(), self._recorded()))

    def _judge(self, report: dict[str, Any]) -> None:
        problems = self.story.problems
        for name, found in (("file", self._written()), ("server's table", self._recorded())):
            written = Counter(found)
            if written != self._given:
                lost, twice = self._given - written, written - self._given
                problems.append(
                    f"the {name} lacks {len(lost)} payments, and has {len(twice)} too often: {[*lost, *twice][:5]}"
                )
        with contextlib.closing(sqlite3.connect(self._folder / "out.db")) as database:
            totals = dict(database.execute("SELECT account, cents FROM totals"))
        if totals != self._totals:
            problems.append("the totals are wrong")
        if self._server and dict(self._server.ask(SUMS)) != self._totals:
            problems.append("the sums of the server's table are wrong")
        emitted = self.story.lines + self.story.rows
        books = (report["emitted"], report["completed"], report["pending"], report["failed"])
        if books != (emitted, emitted, 0, BAD_LINES - self._bad_left):
            problems.append(f"the books say {books} of {emitted} items, {BAD_LINES - self._bad_left} of them bad")
