"""Requests by the thousand, while what takes them is killed: what was answered with 202 is in the sink, once.

    python -m tests.faults.http_attack --requests 100000 --kills 20 --wrk

Half of the own clients give each request an Idempotency-Key, and repeat it until it is taken: all that they have sent
must be there once. The others, and wrk, go on to something else when there is no answer: what was not answered may be
there or not, but not twice. The victim is killed with `kill -9`: the whole process group, its supervisor, a worker, or,
in some of its lives, whoever commits requests to the journal, just before or just after that.

With wrk (`apt-get install wrk`) each request of each connection has an id of its own, and a script notes those that are
answered with 202. There is nothing else to install for the own clients.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from consecution.runtime import failpoints
from consecution.runtime.journal_check import check_state_dir
from tests.faults import processes

ROOT = Path(__file__).parents[2]
STARTS_WITHIN_S = 60.0
STOPS_WITHIN_S = 60.0
GONE_WITHIN_S = 10.0
ANSWERS_WITHIN_S = 120.0
"""How long there may be no answer with 202 at all, whoever has just died."""
GIVES_UP_S = 0.05
VICTIMS = {"process": ("worker", "supervisor", "all"), "thread": ("all",)}
COMMITS = ("origin.before_commit", "origin.committed")
WRK_SLICE_S = 4
WRK_THREADS = 16
WRK_SCRIPT = """
local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end
function init(args)
  sent, prefix = 0, "wrk-" .. args[2] .. "-" .. number .. "-"
  acked = io.open(args[1] .. "/acked-" .. args[2] .. "-" .. number, "w")
end
function request()
  sent = sent + 1
  return wrk.format("POST", "/", { ["Content-Type"] = "application/json" }, '"' .. prefix .. sent .. '"')
end
function response(status)
  if status == 202 then acked:write(prefix .. sent, "\\n") end
end
"""


@dataclass
class Outcome:
    """What happened. ``problems`` is empty where everything is as it should be."""

    acked: int = 0
    seconds: float = 0.0
    kills: list[str] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)


class Victim:
    """The pipeline, in a process group of its own; after `kill` it can be started again."""

    def __init__(self, folder: Path, draw: random.Random, mode: str, sync: str, most_traps: int) -> None:
        self._folder = folder
        self._draw = draw
        self._tokens: list[Path] = []
        self._most_traps = most_traps
        self._options = [mode, sync]
        self.outlived: list[str] = []
        """Whoever was still there long after its supervisor had been killed."""
        self._mark = f"http-{os.getpid()}-{time.monotonic_ns()}"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.faults.http_attack", "--victim", str(self._folder), str(self.port)]
        environment = {**os.environ, processes.VARIABLE: self._mark, failpoints.VARIABLE: self._trap()}
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command + self._options, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
            )
        deadline_s = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            if self._process.poll() == -signal.SIGKILL:
                return
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the victim does not start:\n{self.log()}")
            time.sleep(0.02)

    def _trap(self) -> str:
        if len(self._tokens) >= self._most_traps:
            return ""
        token = self._folder / f"token-{len(self._tokens)}"
        token.touch()
        self._tokens.append(token)
        return f"{self._draw.choice(COMMITS)}@{self._draw.randrange(5, 100)}:{token}"

    def revive(self) -> None:
        """Start it again if it has died at a commit, as a whole."""
        if self._process is not None and self._process.poll() == -signal.SIGKILL:
            self.end()
            self.start()

    @property
    def died_at_commits(self) -> int:
        """How often it, or a worker of it, has been killed at a commit."""
        return sum(not token.exists() for token in self._tokens)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def kill(self, what: str) -> None:
        assert self._process is not None
        if what == "worker":
            workers = [found for found in processes.of_run(self._mark) if found.pid != self._process.pid]
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._draw.choice(sorted(workers, key=lambda found: found.pid)).pid, signal.SIGKILL)
            return
        if what == "supervisor":
            self._process.kill()
            self._process.wait()
            left = processes.wait_until_gone(self._mark, GONE_WITHIN_S)
            self.outlived += [f"outlives its supervisor: {found.command} ({found.pid})" for found in left]
        self.end()
        self.start()

    def stop(self) -> int:
        """Stop it as systemd would; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOPS_WITHIN_S)

    def end(self) -> None:
        """Kill all of it at once."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for left in processes.wait_until_gone(self._mark, GONE_WITHIN_S):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left.pid, signal.SIGKILL)

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-4000:]


class Client(threading.Thread):
    """Sends one request after another, of one to three items, until it is told to end."""

    def __init__(self, name: str, port: int, outcome: Outcome, *, keyed: bool) -> None:
        super().__init__(name=name, daemon=True)
        self._port = port
        self._outcome = outcome
        self._keyed = keyed
        self._connection: http.client.HTTPConnection | None = None
        self.ending = threading.Event()
        self.acked: list[str] = []
        self.sent = 0

    def run(self) -> None:
        while not self.ending.is_set():
            items = [f"{self.name}-{self.sent}-{n}" for n in range(1 + self.sent % 3)]
            key = f"{self.name}-{self.sent}" if self._keyed else None
            self.sent += 1
            while not self._send(items, key) and self._keyed and not self.ending.is_set():
                time.sleep(GIVES_UP_S)
        self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(self, items: list[str], key: str | None) -> bool:
        headers = {"content-type": "application/json", **({"idempotency-key": key} if key is not None else {})}
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                self._connection.connect()
                self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.request("POST", "/", json.dumps(items), headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._outcome.statuses[type(error).__name__] += 1
            self._hang_up()
            time.sleep(GIVES_UP_S)
            return False
        self._outcome.statuses[str(answer.status)] += 1
        if answer.status == 202:
            self.acked += items
            self._outcome.acked += 1
        return answer.status == 202


def attack(
    folder: Path,
    *,
    requests: int,
    kills: int,
    seed: int,
    mode: str = "process",
    sync: str = "process",
    wrk: bool = False,
) -> Outcome:
    """Send so many requests, with so many kills in between, and look at what is in the sink."""
    draw = random.Random(seed)
    victim, outcome = Victim(folder, draw, mode, sync, most_traps=1 + kills), Outcome()
    try:
        victim.start()
        started_s = time.monotonic()
        due = [requests * (number + 1) // (kills + 1) for number in range(kills)]
        load = _Wrk(folder, victim, outcome) if wrk else _Clients(victim, outcome)
        with load:
            patience = _Patience()
            while (outcome.acked < requests or due) and patience.lasts(outcome):
                if due and outcome.acked >= due[0]:
                    due.pop(0)
                    outcome.kills.append(draw.choice(VICTIMS[mode]))
                    victim.kill(outcome.kills[-1])
                victim.revive()
                load.go_on()
            outcome.seconds = time.monotonic() - started_s
        victim.revive()
        outcome.kills += ["at a commit"] * victim.died_at_commits
        code = victim.stop()
        if code:
            outcome.problems.append(f"the victim ended with {code}:\n{victim.log()}")
        outcome.problems += [*victim.outlived, *check_state_dir(folder / "state").problems]
        outcome.problems += load.judge(collections.Counter((folder / "out").read_text().split()))
    finally:
        victim.end()
    return outcome


class _Patience:
    """With those who wait for answers."""

    def __init__(self) -> None:
        self._acked, self._since_s = 0, time.monotonic()

    def lasts(self, outcome: Outcome) -> bool:
        """False, and a problem, when there was no answer for too long."""
        now_s = time.monotonic()
        if outcome.acked != self._acked:
            self._acked, self._since_s = outcome.acked, now_s
        if now_s - self._since_s <= ANSWERS_WITHIN_S:
            return True
        outcome.problems.append(
            f"no request was answered with 202 for {ANSWERS_WITHIN_S:g} s, after {outcome.acked:,} that were"
        )
        return False


class _Clients:
    """Eight threads; every other one repeats what was not answered."""

    def __init__(self, victim: Victim, outcome: Outcome) -> None:
        self._clients = [Client(f"client-{n}", victim.port, outcome, keyed=n % 2 == 0) for n in range(8)]

    def __enter__(self) -> _Clients:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.ending.set()
        for client in self._clients:
            client.join(STOPS_WITHIN_S)

    def go_on(self) -> None:
        time.sleep(0.01)

    def judge(self, found: collections.Counter[str]) -> list[str]:
        acked = [item for client in self._clients for item in client.acked]
        return judge(acked, found)


class _Wrk:
    """wrk, some seconds at a time; each of its threads has one connection, so that it knows what was answered."""

    def __init__(self, folder: Path, victim: Victim, outcome: Outcome) -> None:
        self._folder = folder
        self._url = f"http://127.0.0.1:{victim.port}"
        self._outcome = outcome
        self._slice = 0
        self._process: subprocess.Popen[str] | None = None
        (folder / "load.lua").write_text(WRK_SCRIPT)

    def __enter__(self) -> _Wrk:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def go_on(self) -> None:
        """Start another slice when the one before is over."""
        if self._process is not None and self._process.poll() is None:
            time.sleep(0.05)
        else:
            self._finish()
            self._slice += 1
            threads, script = [f"-t{WRK_THREADS}", f"-c{WRK_THREADS}"], str(self._folder / "load.lua")
            command = ["wrk", *threads, f"-d{WRK_SLICE_S}", "-s", script, self._url]
            command += ["--", str(self._folder), str(self._slice)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._outcome.acked = sum(path.read_bytes().count(b"\n") for path in self._folder.glob("acked-*"))

    def _finish(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            told, _ = process.communicate(timeout=WRK_SLICE_S + STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        if process.returncode:
            self._look_why(told)
        found = re.findall(r"(connect|read|write|timeout) (\d+)", told) + re.findall(r"(Non-2xx).*: (\d+)", told)
        self._outcome.statuses.update({what: int(count) for what, count in found if int(count)})

    def _look_why(self, told: str) -> None:
        """It has not even begun: nobody listens, for the victim has just died. Anything else is wrong."""
        if "unable to connect" not in told:
            raise RuntimeError(f"wrk cannot send: {told}")
        self._outcome.statuses["nobody listens"] += 1
        time.sleep(GIVES_UP_S)

    def judge(self, found: collections.Counter[str]) -> list[str]:
        acked = [name for path in self._folder.glob("acked-*") for name in path.read_text().split()]
        self._outcome.acked = len(acked)
        return judge(acked, found)


def judge(acked: list[str], found: collections.Counter[str]) -> list[str]:
    """What was answered is there; nothing is there twice."""
    lost = [item for item in acked if not found[item]]
    twice = [item for item, count in found.items() if count > 1]
    problems = []
    if lost:
        problems.append(f"{len(lost)} items were answered with 202 and are not in the sink: {lost[:5]}")
    if twice:
        problems.append(f"{len(twice)} items are in the sink more than once: {twice[:5]}")
    return problems


def live(folder: Path, port: int, mode: str, sync: str) -> None:
    """One life of the victim."""
    from consecution import Map, Pipeline, Producer, TextLines

    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    pipeline = Pipeline(Producer("http", port=port) | Map(str.strip, name="strip") | TextLines("out", folder / "out"))
    pipeline.run(mode=mode, sync=sync, state_dir=folder / "state")  # type: ignore[arg-type]


def main() -> int:
    if sys.argv[1:2] == ["--victim"]:
        folder, port, mode, sync = sys.argv[2:]
        live(Path(folder), int(port), mode, sync)
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.faults.http_attack", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--mode", choices=["thread", "process"], default="process")
    parser.add_argument("--sync", choices=["process", "power"], default="power")
    parser.add_argument("--wrk", action="store_true", help="let wrk send, instead of eight threads of Python")
    arguments = vars(parser.parse_args())
    if arguments["wrk"] and shutil.which("wrk") is None:
        parser.error("--wrk: wrk is not installed: `apt-get install wrk`; without --wrk eight threads of Python send")
    folder = Path(tempfile.mkdtemp(prefix="consecution-http-"))
    print(f"seed {arguments['seed']}, in {folder}", flush=True)
    outcome = attack(folder, **arguments)
    print(
        f"{outcome.acked:,} requests answered with 202 in {outcome.seconds:.1f} s "
        f"({outcome.acked / outcome.seconds:,.0f} a second), {len(outcome.kills)} kills "
        f"({collections.Counter(outcome.kills)}); {dict(outcome.statuses)}"
    )
    print("\n".join(outcome.problems) or "every one of them is in the sink once")
    if not outcome.problems:
        shutil.rmtree(folder)
    return bool(outcome.problems)


if __name__ == "__main__":
    sys.exit(main())
