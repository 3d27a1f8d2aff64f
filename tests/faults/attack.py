"""Starts the pipeline, kills what the schedule says, starts it again until it ends, and judges it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consecution.runtime import failpoints
from tests.faults import ledger_verdict, mixed_verdict, processes, travel_verdict, verdict
from tests.faults.schedule import (
    FEWEST_KILLS,
    AtProgress,
    AtRecovery,
    AtStart,
    Attack,
    Life,
    Schedule,
    Trap,
    draw,
)
from tests.faults.trouble import lay_tokens
from tests.faults.works import WORKS, worker_of

DEADLINE_S = 150.0
LONG_DEADLINE_S = 600.0
"""With hundreds of thousands of items, and while others work on the machine."""
DEADLINE_PER_ITEM_S = 0.003
"""Where that is more."""
GONE_WITHIN_S = 20.0
LOOK_EVERY_S = 0.002
LOOK_AGAIN_S = 0.1
"""For a victim that was not there."""
MORE_LIVES = 9
"""Than were drawn: failpoints may hit the supervisor when it reads the source itself."""
FAR = 0.02
"""So far on after a kill, or from its start, the run has recovered, whoever had to be started for it."""
SHOWN_LOG_LINES = 40
REPOSITORY = Path(__file__).parents[2]
VERDICTS: dict[str, Any] = {"travel": travel_verdict, "ledger": ledger_verdict, "mixed": mixed_verdict}


@dataclass(slots=True)
class Outcome:
    """What one run has shown. ``problems`` is empty where every promise was kept."""

    schedule: Schedule
    problems: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)
    """Of `Schedule.kinds`, those that came about."""
    told: list[str] = field(default_factory=list)
    """What was done to it, in order."""
    lives: int = 0
    replayed: int = 0
    restarts: int = 0
    seconds: float = 0.0
    recovery_s: list[float] = field(default_factory=list)
    """From the kill of a single worker to the order of replay."""
    orphans_s: list[float] = field(default_factory=list)
    """From the death of the supervisor to that of the last of its processes."""


def run(work: str, seed: int, items: int, *, server: str = "", deadline_s: float = DEADLINE_S) -> Outcome:
    """One run by its seed. The folder is kept where something is wrong. ``server`` as in `Job`."""
    folder = tempfile.mkdtemp(prefix=f"faults-{work}-{seed}-", dir="/tmp")
    return attack(draw(work, seed, items, folder, server), deadline_s=deadline_s)


def attack(schedule: Schedule, *, deadline_s: float = DEADLINE_S) -> Outcome:
    outcome = Outcome(schedule)
    started_s = time.monotonic()
    run = _Run(schedule, outcome, started_s + deadline_s)
    try:
        run.to_the_end()
    except _Broken as broken:
        outcome.problems.append(str(broken))
    finally:
        run.clean_up()
    outcome.seconds = time.monotonic() - started_s
    if not outcome.problems:
        shutil.rmtree(schedule.job.folder)
    return outcome


def describe(outcome: Outcome) -> str:
    """A failed run for a person: what was wrong, what was done, and how to do it again."""
    job = outcome.schedule.job
    log = "\n".join(_last_lines(Path(job.folder), SHOWN_LOG_LINES))
    return "\n".join(
        [
            f"seed {job.seed}: {outcome.schedule}",
            *(f"  - {problem}" for problem in outcome.problems),
            "done to it: " + ("; ".join(outcome.told) or "nothing"),
            f"folder: {job.folder}",
            f"again: python -m tests.faults --work {job.work} --seed {job.seed} --items {job.items}"
            + (" --server" if job.server else " --no-server"),
            log,
        ]
    )


def _last_lines(folder: Path, count: int) -> list[str]:
    logs = sorted(folder.glob("log-*"))
    return logs[-1].read_text(errors="replace").splitlines()[-count:] if logs else []


class _Broken(Exception):
    """The run cannot go on."""


class _Run:
    def __init__(self, schedule: Schedule, outcome: Outcome, deadline_s: float) -> None:
        self.job = schedule.job
        self.impatient = schedule.impatient
        self.stubborn = schedule.stubborn
        self.reserve = list(schedule.reserve)
        self.outcome = outcome
        self.deadline_s = deadline_s
        self._schedule = schedule
        self._folder = Path(self.job.folder)
        self.mark = self._folder.name
        self.expected_bytes = WORKS[self.job.work].expected_bytes(self.job)
        self.job.save()
        work = WORKS[self.job.work]
        self.worker_of = worker_of(self.job)
        lay_tokens(self.job, work.marks_of(self.job))
        for name in ("run", "tmp", "traps"):
            (self._folder / name).mkdir()
        work.prepare(self.job)

    def to_the_end(self) -> None:
        drawn = self._schedule.lives
        most_lives = len(drawn) + MORE_LIVES + sum(len(life.traps) for life in drawn) * self._schedule.stubborn
        left = Life()
        for number in itertools.count(1):
            if number > most_lives:
                raise _Broken(f"not at its end after {number - 1} lives")
            life = drawn[number - 1] if number <= len(drawn) else Life()
            self.outcome.lives = number
            living = _Life(self, number, left.and_then(life))
            code = living.live()
            if code is not None:
                break
            if self._schedule.stubborn:
                left = living.left()
        self._judge(code)

    def _judge(self, code: int) -> None:
        outcome, job = self.outcome, self.job
        left = processes.wait_until_gone(self.mark, GONE_WITHIN_S)
        outcome.problems += [f"left running: {found.command} ({found.pid})" for found in left]
        for name in ("run", "tmp"):
            found = sorted(p.relative_to(self._folder) for p in (self._folder / name).rglob("*"))
            outcome.problems += [f"left behind: {path}" for path in found]
        outcome.problems += verdict.of_shared_memory(self.mark)
        report = verdict.read_report(job)
        if report is None:
            outcome.problems.append(f"it ended with exit code {code} and no report")
            return
        outcome.replayed, outcome.restarts = report.replayed, report.restarts
        marks = WORKS[job.work].marks_of(job)
        outcome.kills["by an item"] = sum(kind == "kill" for kinds in marks.values() for kind in kinds.values())
        failed = len(WORKS[job.work].expected_failures(job))
        outcome.problems += verdict.of_report(job, report, code, failed)
        outcome.problems += verdict.of_final_journals(job, failed, WORKS[job.work].origins(job))
        torn_at_most = sum(outcome.kills.values()) * 8
        kills = sum(count for kind, count in outcome.kills.items() if kind != "by an item")
        if self._schedule.stubborn and kills < FEWEST_KILLS:
            outcome.problems.append(f"only {kills} kills came about, expected at least {FEWEST_KILLS}")
        outcome.problems += VERDICTS[job.work].of_end(job, list(report.failures), torn_at_most=torn_at_most)

    def clean_up(self) -> None:
        for found in processes.of_run(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, signal.SIGKILL)

    def note(self, kind: str, text: str, group: str = "") -> None:
        self.outcome.kills[kind] += 1
        self.outcome.seen.add(f"@{group}" if group else kind)
        self.outcome.told.append(text)

    def environment(self, traps: str) -> dict[str, str]:
        return {
            **os.environ,
            processes.VARIABLE: self.mark,
            failpoints.VARIABLE: traps,
            "XDG_RUNTIME_DIR": str(self._folder / "run"),
            "TMPDIR": str(self._folder / "tmp"),
            "PYTHONPATH": str(REPOSITORY),
        }


class _Life:
    """One life of the supervisor, and the attacks on it."""

    def __init__(self, run: _Run, number: int, life: Life) -> None:
        self._run = run
        self._job = run.job
        self._number = number
        self._attacks = list(life.attacks)
        self._events = _Events(run.job.path(f"events-{number}"))
        self._traps = {self._lay(trap, place): trap for place, trap in enumerate(life.traps)}
        self._growing = list(map(str, WORKS[run.job.work].growing(run.job)))
        self._stopped: list[int] = []
        self._started_before_kill = 0
        self._progress_at_kill = self._progress()
        self._look_again_s = 0.0
        self._ended_supervisor = False
        self._nobody_cleans_up = False
        """The fork server died too, or was not there yet: the next run does it."""

    def _lay(self, trap: Trap, place: int) -> Path:
        token = self._job.path(f"traps/{self._number}-{place}")
        token.write_text(failpoints.GROUP if trap.group else "")
        return token

    def live(self) -> int | None:
        """Run this life to its end. The exit code, or None where it was killed and has to start again."""
        armed = ",".join(f"{trap.point}@{trap.passes}:{token}" for token, trap in self._traps.items())
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(self._job.path(f"log-{self._number}"), "wb"))
            stdin = stack.enter_context(self._standard_input())
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.victim", str(self._job.path("job.json")), str(self._number)],
                stdin=stdin,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env=self._run.environment(armed),
                start_new_session=True,
            )
            try:
                code = self._watch(process)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        self._look_at_traps()
        self._kill_stopped()
        self._measure()
        self._check_statuses()
        if code >= 0:
            return code
        if not self._ended_supervisor:
            raise _Broken(f"life {self._number} ended by signal {-code}, which nobody sent")
        if not self._run.impatient:
            self._after_death()
        return None

    def left(self) -> Life:
        """What has not come about."""
        return Life(tuple(self._attacks), tuple(self._traps.values()))

    @contextlib.contextmanager
    def _standard_input(self) -> Iterator[int]:
        """The lines, as a file or through a pipe; nothing for other sources."""
        if not self._job.reads_lines:
            yield subprocess.DEVNULL
            return
        with open(self._job.path("lines"), "rb") as lines:
            if self._job.source == "file":
                yield lines.fileno()
                return
            with subprocess.Popen(["cat"], stdin=lines, stdout=subprocess.PIPE) as cat:
                assert cat.stdout is not None
                yield cat.stdout.fileno()

    def _watch(self, process: subprocess.Popen[bytes]) -> int:
        while (code := process.poll()) is None:
            if time.monotonic() > self._run.deadline_s:
                self._show_stacks()
                raise _Broken(f"not at its end in time, in life {self._number}, at {self._progress():.1%}")
            self._events.look()
            self._look_at_traps()
            if self._attacks and self._is_due(self._attacks[0]):
                self._attack(process)
            elif self._run.reserve and self._is_due(self._run.reserve[0]):
                self._make_up_for_few(process)
            time.sleep(LOOK_EVERY_S)
        self._events.look()
        return code

    # -- when ------------------------------------------------------------------------------------

    def _is_due(self, attack: Attack) -> bool:
        trigger = attack.trigger
        if isinstance(trigger, AtProgress):
            return self._progress() >= trigger.fraction
        if isinstance(trigger, AtStart):
            started = trigger.workers
        else:
            assert isinstance(trigger, AtRecovery)
            started = max(1, self._started_before_kill) + trigger.workers
        return self._events.started >= started or self._progress() >= self._progress_at_kill + FAR

    def _progress(self) -> float:
        found_bytes = sum(os.path.getsize(path) for path in self._growing if os.path.exists(path))
        return found_bytes / self._run.expected_bytes

    # -- whom ------------------------------------------------------------------------------------

    def _attack(self, process: subprocess.Popen[bytes]) -> None:
        """Carry out the next one, if its victims are there; else go on to the one after it, or wait for them."""
        if time.monotonic() < self._look_again_s:
            return
        victims = list(self._victims(self._attacks[0], process))
        if victims:
            self._carry_out(self._attacks.pop(0), victims)
        elif self._run.stubborn:
            self._look_again_s = time.monotonic() + LOOK_AGAIN_S
        else:
            del self._attacks[0]
            self._note_kill()

    def _make_up_for_few(self, process: subprocess.Popen[bytes]) -> None:
        """The next of the reserve is due: carry it out if there have been too few kills, as soon as it can be."""
        reserve = self._run.reserve
        place = FEWEST_KILLS - len(reserve) + 1
        if sum(self._run.outcome.kills.values()) >= place:
            del reserve[0]
        elif victims := list(self._victims(reserve[0], process)):
            self._carry_out(reserve.pop(0), victims)

    def _note_kill(self) -> None:
        self._started_before_kill = self._events.started
        self._progress_at_kill = self._progress()

    def _carry_out(self, attack: Attack, victims: list[int]) -> None:
        self._note_kill()
        killed_s = time.monotonic()
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if attack.victim == "hang" else signal.SIGKILL)
        if attack.victim == "hang":
            self._stopped += victims
        self._ended_supervisor |= attack.victim in ("supervisor", "everything")
        self._nobody_cleans_up |= attack.victim in ("everything", "forkserver")
        self._events.kills.append((killed_s, attack.victim))
        self._run.note(attack.victim, f"life {self._number}: {attack}")

    def _victims(self, attack: Attack, process: subprocess.Popen[bytes]) -> Iterator[int]:
        if attack.victim == "supervisor":
            yield process.pid
        elif attack.victim == "everything":
            yield -process.pid
        elif attack.victim == "forkserver":
            found = processes.of_run(self._run.mark)
            yield from (p.pid for p in found if "multiprocess.forkserver" in p.command and p.pid not in self._pids)
        else:
            ours = {p.pid for p in processes.of_run(self._run.mark)}
            workers = dict.fromkeys(self._run.worker_of[task] for task in attack.tasks)
            yield from (self._events.pids[worker] for worker in workers if self._events.pids.get(worker) in ours)

    @property
    def _pids(self) -> set[int]:
        """Workers look like their fork server."""
        return self._events.all_pids

    def _look_at_traps(self) -> None:
        for token, trap in list(self._traps.items()):
            if not token.exists():
                del self._traps[token]
                self._ended_supervisor |= trap.group or self._may_hit_supervisor(trap)
                self._nobody_cleans_up |= trap.group
                self._note_kill()
                self._events.kills.append((time.monotonic(), "trap"))
                kind = "everything@failpoint" if trap.group else f"{trap.point.partition('.')[0]}@failpoint"
                self._run.note(kind, f"life {self._number}: {trap}", trap.group_of_points)

    def _may_hit_supervisor(self, trap: Trap) -> bool:
        return trap.point.startswith("supervisor") or self._job.source != "list"

    def _kill_stopped(self) -> None:
        """Who is stopped does not see that its supervisor is dead; the next run would say that it is in the way."""
        ours = {found.pid for found in processes.of_run(self._run.mark)}
        for pid in ours.intersection(self._stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # -- afterwards ------------------------------------------------------------------------------

    def _after_death(self) -> None:
        """The supervisor is dead: nobody may be left, and nothing on disk may be wrong."""
        dead_s = time.monotonic()
        left = processes.wait_until_gone(self._run.mark, GONE_WITHIN_S)
        if left:
            raise _Broken(f"life {self._number}: these outlive their supervisor: {left}")
        self._run.outcome.orphans_s.append(time.monotonic() - dead_s)
        problems = self._problems_on_disk()
        if self._events.started and not self._nobody_cleans_up:
            problems += [f"left behind by its workers: {path.name}" for path in self._job.path("run").iterdir()]
        if problems:
            raise _Broken(f"after life {self._number}: " + "; ".join(problems))

    def _problems_on_disk(self) -> list[str]:
        if not self._job.path("state/manifest.json").exists():
            return []
        problems = verdict.of_journals_after_crash(self._job)
        return problems + list(
            VERDICTS[self._job.work].of_crash(
                self._job, verdict.read_open(self._job, WORKS[self._job.work].origins(self._job))
            )
        )

    def _check_statuses(self) -> None:
        for emitted, completed, pending in self._events.statuses:
            if emitted != completed + pending:
                self._run.outcome.problems.append(
                    f"a status: emitted {emitted}, completed {completed}, pending {pending}"
                )

    def _measure(self) -> None:
        """Only where one worker was killed and nothing else until the replay."""
        kills = self._events.kills
        for place, (killed_s, victim) in enumerate(kills):
            replayed_s = next((at_s for at_s in self._events.replays if at_s > killed_s), None)
            if victim != "worker" or replayed_s is None:
                continue
            others = [s for p, (s, _) in enumerate(kills) if p != place and killed_s - 1.0 < s < replayed_s]
            if not others:
                self._run.outcome.recovery_s.append(replayed_s - killed_s)

    def _show_stacks(self) -> None:
        """Every worker writes its stacks into the log."""
        for pid in self._events.all_pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
        time.sleep(1.0)


class _Events:
    """What the victim tells, read as it comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.started = 0
        self.pids: dict[str, int] = {}
        """By the names of workers."""
        self.all_pids: set[int] = set()
        self.replays: list[float] = []
        self.kills: list[tuple[float, str]] = []
        self.statuses: list[tuple[int, int, int]] = []

    def look(self) -> None:
        if not self._path.exists() or self._path.stat().st_size == self._at:
            return
        with open(self._path, "rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.decode().splitlines():
            self._take(line.split())

    def _take(self, words: list[str]) -> None:
        if words[0] == "started":
            self.started += 1
            self.pids[words[1]] = int(words[2])
            self.all_pids.add(int(words[2]))
        elif words[0] == "replay":
            self.replays.append(float(words[-1]))
        else:
            self.statuses.append((int(words[1]), int(words[2]), int(words[3])))
